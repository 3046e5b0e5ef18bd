"""`t2v.scored_by`: FastV keeps what the layer in front of the drop attends to, PyramidDrop what the next one would.

The oracle is stock transformers with `output_attentions=True` (eager), which shares no code with the staged decoder.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import reference
import tiny
import tiny_vlms
import torch
from accelerate import dispatch_model
from tiny import Row, chat, collate, images_of, pixels, stock_llama, tiny_llava
from tiny_vlms import FAMILIES, IMAGE, VIDEO

from llava import compress
from llava.compression import CompressionConfig
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaLlamaForCausalLM

HEADS = [(4, 4), (4, 2), (4, 1), (6, 3)]


def attended(attention: torch.Tensor, visual: list[int], count: int) -> list[int]:
    """Numbers of the `count` visual tokens that the last token pays most, in mean over the heads of one row."""
    received = attention.mean(dim=0)[-1][visual]
    return received.topk(count).indices.sort().values.tolist()


def stock_attentions(model: LlavaLlamaForCausalLM, row: Row, image: torch.Tensor) -> tuple[Any, list[int]]:
    """Weights of every layer of the uncompressed prompt, and where its visual tokens stand."""
    weights, parts, visual, length = model.model.embed_tokens.weight, [], [], 0
    for token in row.ids:
        piece = reference.visual_tokens(model, image, None) if token == IMAGE_TOKEN_INDEX else weights[token][None]
        visual += range(length, length + len(piece)) if token == IMAGE_TOKEN_INDEX else []
        length += len(piece)
        parts.append(piece)
    stock = stock_llama(model, "eager")
    return stock(inputs_embeds=torch.cat(parts)[None], output_attentions=True).attentions, visual


@pytest.mark.parametrize("case", range(80))
@torch.no_grad()
def test_fastv_keeps_what_the_layer_before_the_drop_attends_to(case: int) -> None:
    """80 random models: 0 of 80 kept sets were equal while the next layer ranked under this name."""
    draw = random.Random(case)
    heads, kv_heads = HEADS[case % len(HEADS)]
    layer, share = draw.randint(1, 3), draw.choice([0.1, 0.25, 0.5, 0.75])
    model = tiny_llava(layers=4, width=8 * heads, heads=heads, kv_heads=kv_heads, seed=case, tower_layers=2)
    row, image = chat(case, answered=False), pixels(1, seed=case)
    attentions, visual = stock_attentions(model, row, image[0])
    for scored_by, scorer in (("before", layer - 1), ("after", layer)):
        t2v = {"layers": [layer], "keep": [share], "positions": "original", "scored_by": scored_by}
        compression = CompressionConfig.resolve({"t2v": t2v})
        after = model(**collate([row]), images=image, compression=compression).layouts[-1]
        kept = after.visual_index[0][after.is_visual[0]].tolist()
        assert kept == attended(attentions[scorer][0], visual, int(tiny.PATCHES * share)), scored_by


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_fastv_in_every_family_of_transformers(family: str) -> None:
    kind = "video" if family == "video_llava" else "image"
    for seed in range(4):
        model, text = tiny_vlms.vlm(family, attention="eager", seed=seed), tiny_vlms.prompt(family, seed, (kind,))
        inputs = tiny_vlms.batch([text])
        attentions = model(**inputs, output_attentions=True).attentions
        visual = [place for place, token in enumerate(text[0]) if token in (IMAGE, VIDEO)]
        for layer in (1, 2, 5):
            t2v = {"layers": [layer], "keep": [0.5], "positions": "original", "scored_by": "before"}
            after = compress(model, {"t2v": t2v})(**inputs, output_layouts=True).layouts[-1]
            kept = after.visual_index[0][after.is_visual[0]].tolist()
            assert kept == attended(attentions[layer - 1][0], visual, len(visual) // 2)


@torch.no_grad()
def test_the_preset_is_fastv_as_published() -> None:
    """Two layers see everything, the second one's attention of the last token ranks, half stay where they were."""
    t2v = CompressionConfig.from_preset("fastv").t2v
    assert (t2v.layers, t2v.keep, t2v.queries, t2v.positions, t2v.scored_by) == (
        (2,),
        (0.5,),
        "last",
        "original",
        "before",
    )
    model, row, image = tiny_llava(), chat(5, answered=False), pixels(1, seed=5)
    attentions, visual = stock_attentions(model, row, image[0])
    after = model(**collate([row]), images=image, compression=CompressionConfig.from_preset("fastv")).layouts[-1]
    kept = after.visual_index[0][after.is_visual[0]].tolist()
    assert kept == attended(attentions[1][0], visual, tiny.PATCHES // 2)
    assert after.positions[0][after.is_visual[0]].tolist() == [visual[number] for number in kept]


@pytest.mark.parametrize("score", ["random", "uniform"])
@torch.no_grad()
def test_a_control_does_not_depend_on_who_would_score(score: str) -> None:
    model, images = tiny_llava(), pixels(3)
    t2v = tiny.BEFORE["t2v"] | {"score": score}
    outputs = []
    for scored_by in ("before", "after"):
        compression = CompressionConfig.resolve({"t2v": t2v | {"scored_by": scored_by}})
        outputs.append(model(**collate([chat(1), chat(3, (2,))]), images=images, compression=compression))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert [layout.visual for layout in outputs[0].layouts] == [(16, 32), (11, 22), (6, 12), (3, 6)]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`", "ignore:None of the inputs")
def test_no_gradient_flows_through_scoring_before_the_drop(use_reentrant: bool) -> None:
    """With and without checkpointing, the gradients are those of the reference, whose choice is made without any."""
    rows, images = [chat(1), chat(4, (2, 1))], pixels(4)
    whole = tiny_llava(compression=tiny.BEFORE).train()
    batch = collate(rows, labels=True)
    whole(**batch, images=images).loss.backward()
    saving = tiny_llava(compression=tiny.BEFORE).train()
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    saving.enable_input_require_grads()
    saving(**batch, images=images).loss.backward()
    plain = tiny_llava(compression=tiny.BEFORE)
    answers = [
        reference.answer(plain, row, own, plain.compression)
        for row, own in zip(rows, images_of(rows, images), strict=True)
    ]
    (sum(answer.loss_sum() for answer in answers) / sum(answer.supervised() for answer in answers)).backward()
    expected = {name: weight.grad for name, weight in plain.named_parameters() if weight.grad is not None}
    for model in (whole, saving):
        got = dict(model.named_parameters())
        for name, gradient in expected.items():
            if "layers" in name and "vision" not in name:
                torch.testing.assert_close(got[name].grad, gradient, atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def test_the_layer_that_scores_may_lie_on_the_disk(tmp_path) -> None:
    rows, images = [chat(1), chat(4, (2,))], pixels(3)
    model = tiny_llava(compression=tiny.BEFORE)
    expected = model(**collate(rows), images=images)
    parts = ("embed_tokens", "norm", "rotary_emb", "vision_tower", "mm_projector")
    places = {f"model.{part}": "cpu" for part in parts} | {"lm_head": "cpu"}
    places |= {f"model.layers.{number}": "disk" if number in (0, 3) else "cpu" for number in range(6)}
    spread = dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path))
    assert spread.model.layers[3].self_attn.q_proj.weight.device.type == "meta"
    output = spread(**collate(rows), images=images)
    assert torch.equal(output.logits, expected.logits)
    for ours, theirs in zip(output.scores, expected.scores, strict=True):
        assert torch.equal(ours, theirs)
