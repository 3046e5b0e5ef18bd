"""What LLaVA-OneVision does differently: crops whose budgets shrink, several images, frames merged behind pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vlms import FRAMES, IMAGE, VIDEO, batch, look, prompt, vlm
from torch import Tensor

from llava import compress
from llava.compression import V2VConfig, merge_visual_tokens
from llava.model.multimodal_encoder import encode

V2V = {"v2v": {"dominant": 5, "contextual": 3, "cluster_width": 2}}
FAMILY = "llava_onevision"


@pytest.fixture(scope="module")
def stock() -> Any:
    return vlm(FAMILY)


@pytest.fixture(scope="module")
def eager() -> Any:
    """The same model; its tower gives attention maps."""
    return vlm(FAMILY, attention="eager")


def seen_by(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: inputs.get(name) for name in model.visual_inputs}


def several_images() -> dict[str, Any]:
    """One prompt with two images, a crop each, as the processor makes it; and a row with one of five crops."""
    two = [look(FAMILY, "image", number) for number in (1, 2)]
    ids, seen = prompt(FAMILY, 3)
    row = [1, 5, *[IMAGE] * 50, 6, *[IMAGE] * 50, 7, 8]
    width = max(len(row), len(ids))
    rows = [[0] * (width - len(one)) + one for one in (row, ids)]
    pixels = [torch.cat([item.inputs["pixel_values"][:, :1], torch.zeros(1, 4, 3, 56, 56)], dim=1) for item in two]
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor([[int(token > 0) for token in one] for one in rows]),
        "pixel_values": torch.cat([*pixels, seen[0].inputs["pixel_values"]]).double(),
        "image_sizes": torch.cat([item.inputs["image_sizes"] for item in (*two, *seen)]),
        "batch_num_images": torch.tensor([2, 1]),
    }


def test_each_of_several_images_is_one_crop_and_keeps_its_newline(stock: Any) -> None:
    inputs, rest = several_images(), slice(0, 2)
    model = compress(stock, V2V)
    with torch.no_grad():
        spans = model.visual_spans(model.compression, seen_by(model, inputs))[IMAGE]
        assert [(len(span.features), span.replaced) for span in spans[rest]] == [(9, 50), (9, 50)]
        for span in spans[rest]:
            assert torch.equal(span.features[-1], stock.model.image_newline)
        assert model(**inputs).logits.isfinite().all()
        whole = model(**inputs, compression={"t2v": {"layers": [2], "keep": [1.0]}}).logits
        valid = inputs["attention_mask"].bool()
        torch.testing.assert_close(whole[valid], stock(**inputs).logits[valid], atol=3e-5, rtol=0)


@pytest.mark.parametrize("kind", ["video", "several images"])
def test_a_budget_of_everything_is_the_stock_model(stock: Any, kind: str) -> None:
    """Where no rows end: the tower runs to the same layer, frames are pooled alike, and newlines stay."""
    inputs = batch([prompt(FAMILY, 1, ("video",)), prompt(FAMILY, 2, ())])
    if kind != "video":
        inputs = {
            name: value[:2] if "image_sizes" in name or "pixel" in name else value[:1]
            for name, value in several_images().items()
        }
    model = compress(stock, {"v2v": {"dominant": 49, "contextual": 0}})
    with torch.no_grad():
        expected, got = stock(**inputs).logits, model(**inputs).logits
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[valid], expected[valid], atol=3e-5, rtol=0)


def bilinear(size: int, onto: int) -> Tensor:
    """Weights [onto, size] of bilinear interpolation along one axis, written out."""
    weights = torch.zeros(onto, size, dtype=torch.float64)
    for place in range(onto):
        at = max((place + 0.5) * size / onto - 0.5, 0)
        low = int(at)
        weights[place, low] += 1 - (at - low)
        weights[place, min(low + 1, size - 1)] += at - low
    return weights


def last_layer(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, head-mean attention maps and head-mean keys of the tower's last layer, as it computes them itself."""
    keys: list[Tensor] = []
    tower = model.model.vision_tower
    handle = tower.encoder.layers[-1].self_attn.k_proj.register_forward_hook(lambda *call: keys.append(call[2]))
    output = tower(pixels, output_hidden_states=True, output_attentions=True)
    handle.remove()
    return output.hidden_states[-1], output.attentions[-1].mean(dim=1), keys[0].unflatten(-1, (2, 8)).mean(dim=2)


@pytest.mark.parametrize("clusters", ["anchored", "neighbours", "uniform"])
def test_frames_are_merged_as_the_language_model_sees_them(eager: Any, clusters: str) -> None:
    """Pooling as a product with weights that are written out."""
    videos = look(FAMILY, "video", 4).inputs["pixel_values_videos"]
    along = bilinear(7, 4)
    pool = torch.einsum("ah,bw->abhw", along, along).reshape(16, 49)
    v2v = V2VConfig(5, 3, 2, score="received", clusters=clusters)
    model = compress(eager, {"v2v": {**V2V["v2v"], "clusters": clusters}})
    with torch.no_grad():
        features, maps, keys = last_layer(eager, videos[0])
        tokens = pool @ eager.model.multi_modal_projector(features)
        maps, received = pool @ maps @ pool.T, maps.mean(dim=1) @ pool.T
        expected = merge_visual_tokens(tokens, None, pool @ keys, v2v, maps, received, has_cls=False).tokens
        frames = model.visual_spans(model.compression, seen_by(model, {"pixel_values_videos": videos}))[VIDEO]
    assert [span.replaced for span in frames] == [16, 16, 17] and len(frames) == FRAMES
    for frame, merged in zip(frames, expected, strict=True):
        torch.testing.assert_close(frame.features[:8], merged, atol=1e-6, rtol=0)
    assert torch.equal(frames[-1].features[8], eager.model.image_newline) and len(frames[-1].features) == 9


def test_crops_are_merged_each_by_itself_and_the_budget_shrinks_with_the_map(eager: Any) -> None:
    image = look(FAMILY, "image", 3).inputs
    model = compress(eager, V2V)
    with torch.no_grad():
        features, maps, keys = last_layer(eager, image["pixel_values"][0])
        (span,) = model.visual_spans(model.compression, seen_by(model, image))[IMAGE]
        parts = []
        for crop in range(5):
            v2v = V2VConfig(*((5, 3) if crop == 0 else (2, 1)), 2, score="received")
            one = slice(crop, crop + 1)
            merged = merge_visual_tokens(features[one], None, keys[one], v2v, maps[one], has_cls=False).tokens
            parts.append(eager.model.multi_modal_projector(merged)[0])
    torch.testing.assert_close(span.features, torch.cat(parts), atol=1e-6, rtol=0)


def test_an_image_of_many_crops_never_brings_more_tokens_than_nine_would() -> None:
    """As published: crops of 27 x 27 tokens, up to 6 x 6 of them, `anyres_max_9`."""
    model = compress(vlm(FAMILY), "none")
    model.config.vision_config.image_size, model.config.vision_config.patch_size = 384, 14
    model.config.image_grid_pinpoints = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    v2v = V2VConfig(160, 32)
    for rows, columns, fewer in (
        (1, 1, 192),
        (3, 3, 192),
        (2, 5, 192),
        (4, 4, 90 + 18),
        (6, 6, 40 + 8),
        (6, 2, 192 - 48),
    ):
        size, crops = torch.tensor([384 * rows, 384 * columns]), 1 + rows * columns
        held = [sum(one.counts(729)) for one in model.budgets(size, crops, v2v, "anyres_max_9")]
        assert held == [192, *[fewer] * (crops - 1)]
        assert sum(held) <= 192 * 11


def test_large_batches_are_scored_a_few_images_at_a_time(stock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = compress(stock, V2V), batch([prompt(FAMILY, 3, ("image", "video"))])
    with torch.no_grad():
        expected = model(**inputs).logits
        monkeypatch.setattr(encode, "_MAX_ATTENTION_ELEMENTS", 1)
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=0)


def test_a_class_token_that_is_not_there_cannot_be_left_out(stock: Any) -> None:
    inputs = batch([prompt(FAMILY, 1)])
    with pytest.raises(ValueError, match="leaves out a CLS token that the tower does not have; give 'full'"):
        compress(stock, V2V)(**inputs, vision_feature_select_strategy="default")
    del inputs["image_sizes"]
    with pytest.raises(ValueError, match="pixel_values came without image_sizes"):
        compress(stock, V2V)(**inputs)
