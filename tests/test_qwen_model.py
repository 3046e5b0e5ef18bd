"""Qwen2.5-VL in training: what the tower does for images, videos and text alike, budgets in shares, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vlms import IMAGE, batch, look, prompt, vlm
from torch import Tensor

from llava import compress
from llava.compression import CompressionConfig, V2VConfig
from llava.model import staged_decoder

SHARES = {
    "v2v": {"dominant": 0.4, "contextual": 0.2, "cluster_width": 2},
    "t2v": {"layers": [2, 4], "keep": [0.5, 0.25], "queries": "text"},
}
KINDS: dict[str, tuple[str, ...]] = {
    "an image": ("image",),
    "a video": ("video",),
    "both": ("video", "image", "image"),
    "text alone": (),
}


def trained_on(kinds: tuple[str, ...], seed: int = 3) -> dict[str, Any]:
    """A training batch as the collator makes it: text alone brings an image for the tower."""
    made = batch([prompt("qwen2_5_vl", seed, kinds), prompt("qwen2_5_vl", seed + 1, ())], "right", answers=True)
    made["query_mask"] = torch.where(made["labels"] < 0, 7, 0) * made["attention_mask"]
    if not kinds:
        made |= look("qwen2_5_vl", "image", 0).inputs
    return made


def calls_of(model: Any) -> list[str]:
    """Filled with the names of the modules that hold weights, as they are called."""
    calls: list[str] = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda *call, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("compression", ["none", SHARES], ids=["none", "shares"])
def test_every_kind_of_batch_calls_the_same_modules_and_reaches_the_same_weights(
    compression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks under ZeRO-3 gather weights in the order of calls: one that makes another call hangs the others."""
    monkeypatch.setattr(staged_decoder, "ranks_must_agree", lambda: True)
    model = compress(vlm("qwen2_5_vl"), compression)
    seen, reached = {}, {}
    calls = calls_of(model)
    for training in (True, False):
        model.train(training)
        for name, kinds in KINDS.items():
            calls.clear()
            model.zero_grad(set_to_none=True)
            with torch.set_grad_enabled(training):
                loss = model(**trained_on(kinds), return_logits=False).loss
            if training:
                loss.backward()
                reached[name] = {key for key, weight in model.named_parameters() if weight.grad is not None}
            seen[name, training] = list(calls)
    assert all(called == seen["an image", True] for called in seen.values())
    assert seen["an image", True].count("model.visual.patch_embed.proj") == 1
    assert all(weights == reached["an image"] for weights in reached.values())
    assert any("visual" in name for name in reached["text alone"])


def test_an_image_that_text_alone_brings_changes_nothing() -> None:
    model, with_image = compress(vlm("qwen2_5_vl"), SHARES), trained_on(())
    without = {name: value for name, value in with_image.items() if "pixel" not in name and "grid" not in name}
    loss = model(**with_image).loss
    torch.testing.assert_close(loss, model(**without).loss, atol=1e-12, rtol=0)
    loss.backward()
    gradients = [weight.grad for weight in model.model.visual.parameters()]
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_an_image_without_a_place_in_a_prompt_stays_an_error() -> None:
    model, shown = compress(vlm("qwen2_5_vl"), SHARES), trained_on(())
    with pytest.raises(ValueError, match="placeholder"):
        model(**{name: shown[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")})


@pytest.mark.parametrize(("number", "expected"), [(0, 9), (1, 13), (2, 13)])
def test_a_share_is_of_each_images_own_tokens(number: int, expected: int) -> None:
    """16 or 24 tokens: 0.4 keeps 6 or 9, 0.2 merges 3 or 4."""
    model, seen = compress(vlm("qwen2_5_vl"), SHARES), look("qwen2_5_vl", "image", number)
    inputs = dict.fromkeys(model.visual_inputs) | seen.inputs
    with torch.no_grad():
        (span,) = model.visual_spans(model.compression, inputs)[IMAGE]
        counts = {16: V2VConfig(6, 3, 2, score="received"), 24: V2VConfig(9, 4, 2, score="received")}
        (counted,) = model.visual_spans(CompressionConfig(counts[span.replaced]), inputs)[IMAGE]
    assert len(span.features) == expected
    assert torch.equal(span.features, counted.features) and torch.equal(span.slots, counted.slots)


def gradients_of(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model(**inputs).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_the_tower_learns_through_kept_and_merged_tokens() -> None:
    """Against differences: along its gradient a weight of the tower changes the loss by the gradient's length."""
    model, inputs = compress(vlm("qwen2_5_vl"), SHARES).train(), trained_on(("image",))
    found = gradients_of(model, inputs)
    step = 1e-4
    for name in ("model.visual.patch_embed.proj.weight", "model.visual.blocks.0.mlp.down_proj.weight"):
        weight, length = model.get_parameter(name), found[name].norm()
        losses = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                weight.add_(sign * step * found[name] / length)
                losses.append(float(model(**inputs).loss))
        slope = (losses[0] - losses[1]) / (2 * step)
        assert length > 0.1 and slope == pytest.approx(float(length), rel=0.02), name


def test_gradients_are_the_same_with_activation_checkpointing() -> None:
    model, inputs = compress(vlm("qwen2_5_vl"), SHARES).train(), trained_on(("image", "video"))
    expected = gradients_of(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients_of(model, inputs)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-12, rtol=1e-9, msg=name)
