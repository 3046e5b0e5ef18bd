"""A tiny tokenizer that behaves as Llama's does: BOS in front, "▁word" pieces, byte fallback for everything else."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from playground.pretrain.text import corpus

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
VOCABULARY = 640


def train_tokenizer(samples: int = 2000) -> PreTrainedTokenizerFast:
    """Byte-pair pieces learnt on the playground's own text: each of its words becomes one token.

    Punctuation and newlines stand alone, so "red" and "red?" share a token.  Special tokens cut the text, and each
    part is tokenised alike, so tokenising a conversation gives the tokens of its turns one after the other.
    """
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(r"[^\w▁']"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=[*SPECIAL_TOKENS, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(corpus(samples), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=_bytes_as_plain_tokens(tokenizer),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="right",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _bytes_as_plain_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with its byte pieces as ordinary tokens: they are no markup that decoding should skip."""
    import json

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL_TOKENS]
    return Tokenizer.from_str(json.dumps(state))
