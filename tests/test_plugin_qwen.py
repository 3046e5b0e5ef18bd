"""What Qwen's families do differently: no CLS token, groups of 2 x 2 patches, 3-D positions. Loops, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_families import BOTH, NO_DROP, T2V, answered
from tiny_vlms import IMAGE, QWEN, VIDEO, batch, prompt, vlm
from torch import Tensor

from llava import compress
from llava.compression import CompressionConfig, V2VConfig, merge_visual_tokens


def last_block(model: Any, pixels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of the last block as it computes them, [P, H, d] unrotated, with a hook; window order."""
    seen: list[Tensor] = []
    block = model.model.visual.blocks[-1]
    handle = block.attn.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
    features = model.model.get_image_features(pixels, grid).pooler_output
    handle.remove()
    qkv = seen[0].view(len(pixels), 3, 2, 8)
    return qkv, torch.cat(features)


def rotated(states: Tensor, row: int, column: int) -> Tensor:
    """Axial rotary embedding of one head [8] by its place, written out (theta 10000, half of the width an axis)."""
    frequencies = [1.0, 10000.0**-0.5]
    angles = [row * f for f in frequencies] + [column * f for f in frequencies]
    cos = torch.tensor(angles * 2, dtype=torch.float64).cos()
    sin = torch.tensor(angles * 2, dtype=torch.float64).sin()
    turned = torch.cat([-states[4:], states[:4]])
    return states * cos + turned * sin


def patch_places(height: int, width: int) -> list[tuple[int, int]]:
    """Row and column of each patch in the order of the processor: groups of 2 x 2, row by row."""
    return [
        (2 * group_row + y, 2 * group_column + x)
        for group_row in range(height // 2)
        for group_column in range(width // 2)
        for y in range(2)
        for x in range(2)
    ]


def window_groups(height: int, width: int) -> list[int]:
    """Groups in the order in which windows of 2 x 2 groups are computed (window_size 16, patches of 4)."""
    rows, columns = height // 2, width // 2
    return [
        row * columns + column
        for top in range(0, rows, 2)
        for left in range(0, columns, 2)
        for row in range(top, min(top + 2, rows))
        for column in range(left, min(left + 2, columns))
    ]


def by_hand(model: Any, pixels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention map between groups [n, n], group keys [n, d] and features [n, D] of one image."""
    _, height, width = grid[0].tolist()
    qkv, features = last_block(model, pixels, grid)
    groups = height * width // 4
    plain = qkv
    if model.config.model_type == "qwen2_5_vl":
        plain = torch.empty_like(qkv).view(groups, 4, 3, 2, 8)
        plain[torch.tensor(window_groups(height, width))] = qkv.view(groups, 4, 3, 2, 8)
        plain = plain.view(-1, 3, 2, 8)
    places = patch_places(height, width)
    whole = torch.zeros(groups, groups, dtype=torch.float64)
    for head in range(2):
        queries = torch.stack([rotated(plain[i, 0, head], *place) for i, place in enumerate(places)])
        keys = torch.stack([rotated(plain[i, 1, head], *place) for i, place in enumerate(places)])
        weights = (queries @ keys.T / 8**0.5).softmax(dim=-1)
        for a in range(groups):
            for b in range(groups):
                whole[a, b] += weights[4 * a : 4 * a + 4, 4 * b : 4 * b + 4].mean() / 2
    keys = torch.stack([plain[4 * g : 4 * g + 4, 1].mean(dim=(0, 1)) for g in range(groups)])
    return whole, keys, features


@pytest.mark.parametrize("clusters", ["anchored", "neighbours", "uniform"])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("family", QWEN)
def test_v2v_scores_groups_by_what_they_receive_in_the_last_block(family: str, number: int, clusters: str) -> None:
    from tiny_vlms import look

    model, seen = vlm(family), look(family, "image", number)
    pixels, grid = seen.inputs["pixel_values"], seen.inputs["image_grid_thw"]
    v2v = V2VConfig(5, 2, 2, score="received", clusters=clusters)
    with torch.no_grad():
        whole, keys, features = by_hand(model, pixels, grid)
        spans = compress(model, {"v2v": {"dominant": 5, "contextual": 2, "cluster_width": 2, "clusters": clusters}})
        (span,) = spans.visual_spans(CompressionConfig(v2v), seen_inputs(seen))[IMAGE]
    expected = merge_visual_tokens(features[None], None, keys[None], v2v, whole[None])
    best = whole.mean(dim=0).topk(5).indices.sort().values
    assert set(best.tolist()) <= set(span.slots.tolist())
    order = expected.source[0].argsort()
    assert span.slots.tolist() == expected.source[0][order].tolist() == sorted(span.slots.tolist())
    torch.testing.assert_close(span.features, expected.tokens[0][order], atol=1e-6, rtol=0)
    assert span.replaced == len(features)


def seen_inputs(seen: Any) -> dict[str, Any]:
    names = ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw")
    return {name: seen.inputs.get(name) for name in names}


def test_large_images_are_scored_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.model.families import qwen_vl

    inputs = batch([prompt("qwen2_5_vl", 1, ("image", "video"))])
    model = compress(vlm("qwen2_5_vl"), BOTH)
    with torch.no_grad():
        expected = model(**inputs).logits
        monkeypatch.setattr(qwen_vl, "_MAX_ATTENTION_ELEMENTS", 1)
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", QWEN)
def test_each_frame_of_a_video_attends_to_itself_and_has_its_own_budget(family: str) -> None:
    """Two frames of one video are merged as two videos of one frame are."""
    from tiny_vlms import look

    model, video = compress(vlm(family), BOTH), look(family, "video", 1)
    pixels, grid = video.inputs["pixel_values_videos"], video.inputs["video_grid_thw"]
    apart = grid.repeat(2, 1)
    apart[:, 0] = 1
    with torch.no_grad():
        together = model.visual_spans(model.compression, seen_inputs(video))[VIDEO]
        alone = model.visual_spans(
            model.compression, seen_inputs(video) | {"pixel_values_videos": pixels, "video_grid_thw": apart}
        )[VIDEO]
    assert len(together) == len(alone) == 2
    for one, other in zip(together, alone, strict=True):
        assert len(one.features) == 8 and torch.equal(one.slots, other.slots)
        torch.testing.assert_close(one.features, other.features, atol=1e-9, rtol=0)


@pytest.mark.parametrize("config", [T2V, BOTH])
@pytest.mark.parametrize("family", QWEN)
def test_survivors_keep_their_3d_positions_at_every_stage(family: str, config: dict[str, Any]) -> None:
    model = compress(vlm(family), config)
    assert model.compression.t2v.positions == "original"
    ids, seen = prompt(family, 2, ("image", "video"))
    inputs = batch([(ids, seen)])
    stock, _ = model.model.get_rope_index(**{k: v for k, v in inputs.items() if "pixel" not in k})
    with torch.no_grad():
        output = model(**inputs, output_layouts=True, use_cache=True)
    first = output.layouts[0]
    spans = model.visual_spans(model.compression, {**dict.fromkeys(model.visual_inputs), **inputs})
    image, frames = spans[IMAGE][0], spans[VIDEO]
    slots = [span.slots if span.slots is not None else torch.arange(len(span.features)) for span in (image, *frames)]
    expected, start, queue = [], 0, list(zip(slots, (image, *frames), strict=True))
    while start < len(ids):
        if ids[start] in (IMAGE, VIDEO):
            places, span = queue.pop(0)
            expected += [stock[:, 0, start + int(place)].tolist() for place in places]
            start += span.replaced
        else:
            expected.append(stock[:, 0, start].tolist())
            start += 1
    assert first.positions[:, 0].T.tolist() == expected
    by_number = {int(n): expected[i] for i, n in enumerate(first.visual_index[0].tolist()) if n >= 0}
    words = [expected[i] for i, n in enumerate(first.visual_index[0].tolist()) if n < 0]
    for layout in output.layouts[1:]:
        numbers = layout.visual_index[0].tolist()
        places = layout.positions[:, 0].T.tolist()
        assert [place for place, number in zip(places, numbers, strict=True) if number < 0] == words
        assert all(place == by_number[number] for place, number in zip(places, numbers, strict=True) if number >= 0)
    following = int(stock[:, 0, -1].max()) + 1
    assert [stage.next_position.tolist() for stage in output.past_key_values.stages] == [[[following]]] * 3


@pytest.mark.parametrize("named", [True, False], ids=["mm_token_type_ids", "ids alone"])
def test_text_behind_a_long_video_goes_on_where_the_stock_model_does(named: bool) -> None:
    """Six frames of 2 x 2 patches reach further in time than the text behind them."""
    model, count = vlm("qwen2_5_vl"), 6
    ids = torch.tensor([[5, 62, *[VIDEO] * count, 63, 7, 8]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "video_grid_thw": torch.tensor([[count, 2, 2]]),
        "pixel_values_videos": torch.randn(4 * count, 96, dtype=torch.float64),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
    }
    expected = answered(model, inputs)
    if not named:
        del inputs["mm_token_type_ids"]
    assert answered(compress(model, NO_DROP), inputs) == expected


def test_the_second_drop_keeps_a_share_of_what_entered() -> None:
    """The released code keeps 3/8 of the tokens at its second drop where 1/4 is asked for."""
    model = compress(vlm("qwen2_5_vl"), T2V)
    inputs = batch([prompt("qwen2_5_vl", 0, ("image", "image"))])
    with torch.no_grad():
        layouts = model(**inputs, output_layouts=True).layouts
    assert [layout.visual for layout in layouts] == [(40,), (20,), (10,)]


@pytest.mark.parametrize("family", QWEN)
def test_an_image_smaller_than_the_budget_keeps_everything(family: str) -> None:
    config = {"v2v": {"dominant": 20, "contextual": 10}}
    model, inputs = vlm(family), batch([prompt(family, 1)])
    compressed = compress(model, config)
    assert compressed.compression.v2v.score == "received"
    with torch.no_grad():
        torch.testing.assert_close(compressed(**inputs).logits, model(**inputs).logits, atol=3e-5, rtol=0)


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_a_video_whose_time_runs_ahead_of_the_text_is_no_packed_prompt(seconds: float) -> None:
    """The stock model's own positions of a slow video; a prompt that starts anew behind it is still refused."""
    stock, inputs = vlm("qwen2_5_vl"), batch([prompt("qwen2_5_vl", 3, ("video",))])
    inputs["second_per_grid_ts"] = torch.tensor([seconds])
    names = ("video_grid_thw", "mm_token_type_ids", "second_per_grid_ts")
    made, _ = stock.model.get_rope_index(inputs["input_ids"], **{name: inputs[name] for name in names})
    model = compress(stock, BOTH)
    with torch.no_grad():
        assert torch.equal(model(**inputs, position_ids=made).logits, model(**inputs).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**inputs, position_ids=made, **options), model.generate(**inputs, **options))
    made[..., -2:] = torch.arange(2)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="start anew within it"):
            call(**inputs, position_ids=made)
    with pytest.raises(ValueError, match="mm_token_type_ids has shape"):
        model(**inputs | {"mm_token_type_ids": inputs["mm_token_type_ids"][:, :-2]})
