"""A tiny Llama, pretrained on text alone: scenes in words or word slots, captions, questions and answers.

It learns what instruction tuning of the playground should not have to teach: to carry what is asked about to the
last token, to find the matching phrase, and to copy its other words.  Half of the batches lose slots between layers
as the decoder of a compressed model will, so that phrases are read before they go and positions may move.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from playground.pretrain.text import Conversation, caption, conversation, draw_digits, slots
from playground.world.language import ask, describe

logger = logging.getLogger(__name__)

IGNORED = -100
TURNS = 3
#: Probability of a batch's form: word slots with questions, word slots with a caption, sentences with questions.
FORMS = {"slots": 0.55, "caption": 0.25, "sentences": 0.2}
#: Ranges of the number of slots in a batch; short ones are seen more often because they are cheaper.
SLOT_RANGES = ((8, 24), (8, 24), (16, 50), (16, 50), (50, 150))
#: After so many layers, this share of the slots (at random) is kept in batches that lose slots.
DROPS = {4: 0.5, 6: 0.0}
NOISE = 0.4
#: About width ** -0.5.  The usual 0.02 suits widths of thousands; here it would leave attention flat for long.
INITIAL_SPREAD = 0.08


@dataclass
class TextBatch:
    """Token ids before the scene [B, P] and after it [B, T], labels of the latter, and the words of each slot.

    `words` is [B, S, W] with -1 where a slot has fewer than W words; S may be 0.
    """

    before: Tensor
    after: Tensor
    labels: Tensor
    words: Tensor


class TextSource:
    """Draws batches of tokenised text; everything random comes from one seed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch_size: int, seed: int) -> None:
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.rng = random.Random(seed)

    def draw(self, form: str | None = None, slot_count: int | None = None) -> TextBatch:
        """A batch of one form ("slots", "caption" or "sentences"); form and number of slots are drawn if not given."""
        form = form or self.rng.choices(list(FORMS), list(FORMS.values()))[0]
        count = slot_count or self.rng.randint(*self.rng.choice(SLOT_RANGES))
        talks, phrases = [], []
        for _ in range(self.batch_size):
            digits = draw_digits(self.rng)
            if form == "caption":
                talks.append(caption(digits))
            else:
                scene = describe(digits) if form == "sentences" else ""
                talks.append(conversation(ask(digits, TURNS, self.rng), scene))
            phrases.append(slots(digits, count, self.rng) if form != "sentences" else [])
        after, labels = self._tokenise(talks)
        before = self.tokenizer([talk.before for talk in talks], return_tensors="pt").input_ids
        return TextBatch(before, after, labels, self._word_ids(phrases))

    def _tokenise(self, talks: Sequence[Conversation]) -> tuple[Tensor, Tensor]:
        """Ids and labels of the text after the scene, without BOS, padded on the right."""
        rows, labels = [], []
        for talk in talks:
            encoded = self.tokenizer(talk.after, return_offsets_mapping=True)
            ids = encoded.input_ids[1:]
            inside = [
                any(a <= start and end <= b for a, b in talk.answers) for start, end in encoded.offset_mapping[1:]
            ]
            rows.append(torch.tensor(ids))
            labels.append(torch.tensor([i if answer else IGNORED for i, answer in zip(ids, inside, strict=True)]))
        pad = nn.utils.rnn.pad_sequence
        return pad(rows, True, float(self.tokenizer.pad_token_id)).long(), pad(labels, True, float(IGNORED)).long()

    def _word_ids(self, phrases: Sequence[Sequence[Sequence[str]]]) -> Tensor:
        """Token ids of the words of each slot [B, S, W], -1 where there is none."""
        count, width = len(phrases[0]), max((len(words) for row in phrases for words in row), default=1)
        ids = torch.full((len(phrases), count, width), -1)
        for i, row in enumerate(phrases):
            for j, words in enumerate(row):
                ids[i, j, : len(words)] = torch.tensor([self._word_id(word) for word in words])
        return ids

    def _word_id(self, word: str) -> int:
        return self.tokenizer.convert_tokens_to_ids("▁" + word)


def new_language_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama: 8 layers, width 128, 4 heads."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        initializer_range=INITIAL_SPREAD,
    )
    return LlamaForCausalLM(config)


def slot_embeddings(model: LlamaForCausalLM, words: Tensor, noise: float) -> Tensor:
    """Mean embedding of the words of each slot, [B, S, D], scaled at random and blurred by `noise` (0: neither)."""
    there = (words >= 0).float()[..., None]
    mean = (model.model.embed_tokens(words.clamp(min=0)) * there).sum(-2) / there.sum(-2).clamp(min=1)
    if not noise:
        return mean
    scale = torch.empty(mean.shape[0], mean.shape[1], 1).uniform_(-0.7, 1.1).exp()
    spread = mean.detach().square().mean().sqrt() * noise if mean.numel() else 0.0
    return (mean + torch.randn_like(mean) * spread) * scale


def loss_of(model: LlamaForCausalLM, batch: TextBatch, drops: dict[int, float], noise: float) -> tuple[Tensor, Tensor]:
    """Mean loss of the supervised tokens, and which of them are predicted right.

    `drops` maps a number of layers to the share of slots that stays after them; positions are renumbered.
    """
    decoder, scene = model.model, slot_embeddings(model, batch.words, noise)
    embed = decoder.embed_tokens
    hidden = torch.cat([embed(batch.before), scene, embed(batch.after)], 1)
    start, first = batch.before.shape[1], scene.shape[1]
    count = first
    for index, layer in enumerate(decoder.layers):
        if index in drops and count:
            stay = torch.randperm(count)[: int(first * drops[index])].sort().values + start
            hidden = torch.cat([hidden[:, :start], hidden[:, stay], hidden[:, start + count :]], 1)
            count = len(stay)
        positions = torch.arange(hidden.shape[1])[None]
        hidden = layer(hidden, attention_mask=None, position_embeddings=decoder.rotary_emb(hidden, positions))
    predicting = decoder.norm(hidden)[:, start + count - 1 : -1]
    asked = batch.labels != IGNORED
    logits, targets = model.lm_head(predicting[asked]), batch.labels[asked]
    return F.cross_entropy(logits, targets), logits.detach().argmax(-1) == targets


def train_language_model(
    tokenizer: PreTrainedTokenizerFast, steps: int, batch_size: int = 48, peak_lr: float = 1.5e-3, seed: int = 0
) -> LlamaForCausalLM:
    """Pretrains a language model on the playground's text and returns it in evaluation mode."""
    torch.manual_seed(seed)
    model = new_language_model(tokenizer)
    source = TextSource(tokenizer, batch_size, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.1)
    begun = time.perf_counter()
    bar = tqdm(range(steps), desc="language model")
    for step in bar:
        drops = DROPS if step % 2 else {}
        loss, right = loss_of(model, source.draw(), drops, NOISE)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", right=f"{right.float().mean().item():.3f}")
        if (step + 1) % 200 == 0:
            logger.info("step %d: %s", step + 1, measure_language_model(model, tokenizer))
    logger.info("language model: %d steps in %.0f s", steps, time.perf_counter() - begun)
    return model.eval()


@torch.no_grad()
def measure_language_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: int = 128, seed: int = 1
) -> dict[str, float]:
    """Share of supervised tokens predicted right on new text, per form, with and without lost slots."""
    source = TextSource(tokenizer, samples, seed)
    figures = {}
    for name, form, count, drops in (
        ("slots", "slots", 40, {}),
        ("slots, dropping", "slots", 40, DROPS),
        ("144 slots", "slots", 144, {}),
        ("caption", "caption", 40, {}),
        ("sentences", "sentences", None, {}),
    ):
        _, right = loss_of(model, source.draw(form, count), drops, noise=0.0)
        figures[name] = round(float(right.float().mean()), 3)
    return figures
