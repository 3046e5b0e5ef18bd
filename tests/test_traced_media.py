"""The place that a visual token is shown at is that of the pixels it was made of, whatever the crops went through."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_backbones import WRITERS
from tiny_next import SIZES, next_llava
from tiny_video import pictures
from tiny_vlms import IMAGE, VIDEO, vlm
from torch import Tensor

from llava import compress
from llava.checkpoints.opening import open_model
from llava.common.anyres import grid_of
from llava.compression.v2v import PatchRole
from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.frames import Frames
from llava.inference.chat import Chat
from llava.model.crops import Crops
from llava.model.traced_media import TracedMedium, TracedUnit, traced_media
from llava.serve.web.followed_prompt import FollowedPrompt

MERGES = ("spatial_unpad", "spatial_unpad_nobase", "spatial", "spatial_maxpool2x2_nobase", "flat")


def without_attention(model: Any) -> Any:
    """The model with a vision tower in which no patch sees another."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "vision_tower" in name and "self_attn.out_proj" in name:
                weight.zero_()
    return model


class Seen:
    """An image of a size, as a family is shown it: pixels of its crops, and what becomes of them."""

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        self.model, self.size = model, size
        if model.config.model_type == "llava_llama":
            across, down = grid_of(size, model.config.image_grid_pinpoints, 56)
            count, side = 1 + across * down, 56
        else:
            (count,) = self._counts()
            side = model.config.vision_config.image_size
        draw = torch.Generator().manual_seed(count)
        self.pixels = torch.randn(count, 3, side, side, generator=draw, dtype=model.dtype)

    def _counts(self) -> list[int]:
        sizes = torch.tensor([self.size[::-1]])
        crops = self.model._crops
        return crops(sizes, None) if self.model.config.model_type == "llava_onevision" else [crops(sizes[0])]

    def inputs(self, pixels: Tensor) -> dict[str, Any]:
        if self.model.config.model_type == "llava_llama":
            ids = torch.tensor([[IMAGE_TOKEN_INDEX]])
            return {"input_ids": ids, "images": [pixels], "image_sizes": [self.size]}
        return {"pixel_values": pixels, "image_sizes": torch.tensor([self.size[::-1]])}

    def tokens(self, pixels: Tensor, budget: Any = "none") -> Tensor:
        """[n, D] as they enter the language model."""
        inputs, checked = self.inputs(pixels), self.model.checked(budget)
        with torch.no_grad():
            if self.model.config.model_type == "llava_llama":
                return self.model.prefill(inputs, checked).embeddings[0]
            given = {name: inputs.get(name) for name in self.model.visual_inputs}
            return self.model.visual_spans(checked, given)[IMAGE][0].features

    def traced(self, pixels: Tensor, budget: Any = "none") -> TracedMedium:
        own = self.model.config.model_type == "llava_llama"
        medium = Crops(pixels, self.size) if own else SimpleNamespace(kind="image")
        (traced,) = traced_media(self.model, self.inputs(pixels), [medium], self.model.checked(budget))
        return traced


def changed_cells(before: list[TracedUnit], after: list[TracedUnit]) -> set[int]:
    """The tokens of the cells whose pixels are other ones."""
    found: set[int] = set()
    for old, new in zip(before, after, strict=True):
        high, wide = old.pixels.shape[1] / old.rows, old.pixels.shape[2] / old.columns
        places = (old.pixels != new.pixels).any(dim=0).nonzero().tolist()
        cells = {(int((y + 0.5) / high), int((x + 0.5) / wide)) for y, x in places}
        found |= {old.tokens[row * old.columns + column] for row, column in cells}
    return found


def some_patches(pixels: Tensor, patch: int, count: int = 6) -> list[tuple[int, int, int]]:
    """Crop, row and column of some patches, corners among them."""
    side, draw = pixels.shape[-1] // patch, random.Random(len(pixels))
    corners = [(len(pixels) - 1, 0, side - 1), (1, side - 1, 0), (0, 0, side - 1)]
    return corners + [(draw.randrange(len(pixels)), draw.randrange(side), draw.randrange(side)) for _ in range(count)]


def with_other_patch(pixels: Tensor, patch: int, place: tuple[int, int, int]) -> Tensor:
    crop, row, column = place
    other = pixels.clone()
    other[crop, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] *= -3
    return other


def check_places(seen: Seen, patch: int) -> None:
    before, plain = seen.traced(seen.pixels), seen.tokens(seen.pixels)
    assert before.count == len(plain)
    shown = [token for unit in before.units for token in unit.tokens]
    assert len(set(shown)) == len(shown) and all(0 <= token < before.count for token in shown)
    for place in some_patches(seen.pixels, patch):
        other = with_other_patch(seen.pixels, patch, place)
        changed = (seen.tokens(other) != plain).any(dim=1).nonzero().flatten().tolist()
        assert set(changed) == changed_cells(before.units, seen.traced(other).units), place


@pytest.mark.parametrize("merge", MERGES)
def test_a_token_of_llavas_own_crops_is_shown_where_its_patch_is(merge: str) -> None:
    model = without_attention(next_llava(mm_patch_merge_type=merge, tower_layers=2))
    for size in SIZES[:: 1 if merge == "spatial_unpad" else 3]:
        check_places(Seen(model, size), patch=14)


def test_a_token_of_transformers_llava_next_is_shown_where_its_patch_is() -> None:
    model = compress(without_attention(vlm("llava_next")), "none")
    for size in SIZES:
        check_places(Seen(model, size), patch=14)


def onevision(allowed: int, patch: int) -> Any:
    model = vlm("llava_onevision")
    side = 3 * patch + 2  # of the last two lines of pixels no patch is made
    vision = {**model.config.vision_config.to_dict(), "image_size": side, "patch_size": patch}
    pinpoints = [[side * down, side * across] for down in (1, 2, 3) for across in (1, 2, 3)]
    own = model.config.to_dict() | {"vision_config": vision, "image_grid_pinpoints": pinpoints}
    made = type(model)(type(model.config).from_dict(own | {"vision_aspect_ratio": f"anyres_max_{allowed}"}))
    torch.manual_seed(0)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return compress(without_attention(made.to(torch.float64).eval()), "none")


def test_a_token_of_llava_onevision_is_shown_where_its_patch_is() -> None:
    model = onevision(9, patch=8)
    for size in SIZES:
        seen = Seen(model, size)
        if min(size) * 40 > max(size):  # of others the stock model's own packing leaves nothing, or fails
            check_places(seen, patch=8)


def test_a_token_of_a_map_that_was_shrunk_is_shown_over_the_patches_it_is_drawn_from() -> None:
    """Bilinear with half-pixel centres: a token is drawn from the two lines around the middle of its cell."""
    model, patch = onevision(1, patch=8), 8
    for size in [(112, 112), (100, 90), (61, 80), (26, 70)]:
        seen = Seen(model, size)
        before, plain = seen.traced(seen.pixels), seen.tokens(seen.pixels)
        joined = before.units[1]
        whole = joined.pixels.shape[1] // patch, joined.pixels.shape[2] // patch
        assert (joined.rows, joined.columns) != whole and before.count == len(plain)

        def around(cells: int, lines: int, cell: int) -> set[int]:
            middle = (cell + 0.5) * lines / cells - 0.5  # of the cell, in lines
            low = math.floor(middle + 1e-9)
            return {low} if abs(middle - low) < 1e-9 else {low, min(low + 1, lines - 1)}

        for row in range(whole[0]):
            for column in range(whole[1]):
                expected = {
                    joined.tokens[r * joined.columns + c]
                    for r in range(joined.rows)
                    for c in range(joined.columns)
                    if row in around(joined.rows, whole[0], r) and column in around(joined.columns, whole[1], c)
                }
                other = _with_other_line(seen, joined, patch, row, column)
                changed = (seen.tokens(other) != plain).any(dim=1).nonzero().flatten().tolist()
                assert set(changed) == expected, (size, row, column)


def _with_other_line(seen: Seen, joined: TracedUnit, patch: int, row: int, column: int) -> Tensor:
    """Pixels whose crops differ where a patch of the joined picture is, found by its content."""
    wanted, side = cell(joined.pixels, patch, row, column), seen.pixels.shape[-1] // patch
    for place in ((k, i, j) for k in range(1, len(seen.pixels)) for i in range(side) for j in range(side)):
        if torch.equal(cell(seen.pixels[place[0]], patch, *place[1:]), wanted):
            return with_other_patch(seen.pixels, patch, place)
    raise AssertionError("The picture shows pixels that no crop has.")


def cell(pixels: Tensor, patch: int, row: int, column: int) -> Tensor:
    return pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]


def own(merge: str) -> Any:
    return without_attention(next_llava(mm_patch_merge_type=merge, tower_layers=2))


MODELS = {
    "llava, unpadded": (lambda: own("spatial_unpad"), 14, ("crops", "raster")),
    "llava, without the whole": (lambda: own("spatial_nobase"), 14, ("crops", "raster")),
    "llava, flat": (lambda: own("flat"), 14, ("crops", "raster")),
    "transformers' llava-next": (lambda: compress(without_attention(vlm("llava_next"))), 14, ("crops", "raster")),
    "llava-onevision": (lambda: onevision(9, patch=8), 8, ("crops",)),
    "llava-onevision, shrunk": (lambda: onevision(1, patch=8), 8, ("crops",)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_patch_that_v2v_keeps_in_a_crop_is_the_token_that_is_named(kind: str) -> None:
    """The token is what the tower and the projector make of the pixels that are shown there."""
    made, patch, orders = MODELS[kind]
    model = made()
    for size in [(300, 260), (60, 130)]:
        seen = Seen(model, size)
        for order in orders:
            budget = {"v2v": {"dominant": 4, "contextual": 2, "crop_order": order}}
            traced, tokens = seen.traced(seen.pixels, budget), seen.tokens(seen.pixels, budget)
            assert traced.count == len(tokens)
            assert {token for unit in traced.units for token in unit.tokens} - {-1} <= set(range(len(tokens)))
            kept = 0
            for crop, unit in zip(seen.pixels[-len(traced.units) :], traced.units, strict=True):
                alone = _embedded(model, crop)
                for place, (role, token) in enumerate(zip(unit.roles, unit.tokens, strict=True)):
                    here = divmod(place, unit.columns)
                    assert torch.equal(cell(unit.pixels, patch, *here), cell(crop, patch, *here))
                    assert (token < 0) == (role == PatchRole.DROPPED)
                    if role == PatchRole.DOMINANT:
                        torch.testing.assert_close(tokens[token], alone[place])
                        kept += 1
            assert kept >= len(traced.units)


@pytest.mark.parametrize("odd_pixels", [True, False])
def test_a_token_of_a_pooled_frame_is_shown_over_the_patches_it_is_drawn_from(odd_pixels: bool) -> None:
    """Of 7 x 7 patches 4 x 4 tokens, of 3 x 3 of them 2 x 2; V2V keeps some of these."""
    model = onevision(9, 8) if odd_pixels else compress(without_attention(vlm("llava_onevision")), "none")
    vision = model.config.vision_config
    side, patch = vision.image_size // vision.patch_size, vision.patch_size
    draw = torch.Generator().manual_seed(0)
    videos = torch.randn(2, 3, 3, vision.image_size, vision.image_size, generator=draw, dtype=model.dtype)
    plain, units, count = _of_videos(model, videos, "none")
    pooled = math.ceil(side / 2)
    assert count == len(plain) == 2 * (3 * pooled**2 + 1)
    assert [unit.part for unit in units] == ["frame 1 of 3", "frame 2 of 3", "frame 3 of 3"] * 2
    for frame, row, column in [(0, 0, 0), (4, side - 1, 1), (5, 1, side - 1), (2, side // 2, side // 2)]:
        other = videos.clone()
        other.view(6, *videos.shape[2:])[frame] = with_other_patch(videos.flatten(0, 1), patch, (frame, row, column))[
            frame
        ]
        changed = set((_of_videos(model, other, "none")[0] != plain).any(dim=1).nonzero().flatten().tolist())
        lines = [
            {at for at in range(pooled) if abs((at + 0.5) * side / pooled - 0.5 - line) < 1 - 1e-9}
            for line in (row, column)
        ]
        assert changed == {units[frame].tokens[r * pooled + c] for r in lines[0] for c in lines[1]}
    tokens, merged, count = _of_videos(model, videos, {"v2v": {"dominant": 2, "contextual": 1}})
    assert count == len(tokens) == 2 * (3 * 3 + 1)
    for unit, alone in zip(merged, units, strict=True):
        kept = [place for place, role in enumerate(unit.roles) if role == PatchRole.DOMINANT]
        assert len(kept) == 2 and torch.equal(unit.pixels, alone.pixels)
        for place in kept:
            torch.testing.assert_close(tokens[unit.tokens[place]], plain[alone.tokens[place]])


def _of_videos(model: Any, videos: Tensor, budget: Any) -> tuple[Tensor, list[TracedUnit], int]:
    """Tokens [n, D] of videos, their units, and how many tokens these account for."""
    inputs, checked = {"pixel_values_videos": videos}, model.checked(budget)
    with torch.no_grad():
        spans = model.visual_spans(checked, {name: inputs.get(name) for name in model.visual_inputs})[VIDEO]
    media = traced_media(model, inputs, [SimpleNamespace(kind="video")] * len(videos), checked)
    units = [unit for medium in media for unit in medium.units]
    return torch.cat([span.features for span in spans]), units, sum(medium.count for medium in media)


def _embedded(model: Any, crop: Tensor) -> Tensor:
    """[patches, D] of a crop, each patch by itself in the language model's width."""
    if model.config.model_type == "llava_llama":
        with torch.no_grad():
            return model.encode_images(crop[None])[0]
    features = model.model.vision_tower(crop[None], output_hidden_states=True).hidden_states
    layer = model.config.vision_feature_layer
    skipped = int(model.has_cls())
    return model.model.multi_modal_projector(features[layer][:, skipped:]).detach()[0]


def test_a_family_that_does_not_say_what_its_tokens_show_is_told_about_in_a_sentence() -> None:
    model = compress(vlm("pebbles"), "none")
    with pytest.raises(ValueError, match=r"does not say which patches its visual tokens stand for .*counted all"):
        traced_media(model, {}, [SimpleNamespace(kind="image")], model.checked("none"))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chat]:
    made = {}
    for name in ("llava-1.5", "llava-next", "video-llava", "llava-onevision", "qwen2.5-vl"):
        model, processor, tokenizer, _ = open_model(str(WRITERS[name](tmp_path_factory.mktemp(name))), device="cpu")
        made[name] = Chat(model, tokenizer, processor, compression="none", max_new_tokens=1, do_sample=False)
    return made


def followed(chat: Chat, *shown: Any) -> FollowedPrompt:
    """What the page shows of a question about something."""
    chat.reset()
    chat.answer("What is this?", list(shown))
    found = FollowedPrompt.behind(chat)
    assert found is not None and found.reason == ""
    return found


def redness(picture: Image.Image) -> tuple[float, float]:
    """Where the middle of what is red lies, across and down, as shares of the sides."""
    red = torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32))  # [height, width, 3]
    weight = (red[..., 0] - red[..., 1:].amax(dim=-1)).clamp(min=0)
    down, across = weight.sum(dim=1), weight.sum(dim=0)
    steps = [(torch.arange(len(line)) + 0.5) / len(line) for line in (across, down)]
    first, second = (float((at * line).sum() / line.sum()) for at, line in zip(steps, (across, down), strict=True))
    return first, second


@pytest.mark.parametrize("size", [(120, 61), (61, 120), (112, 112), (100, 33), (300, 260)])
@pytest.mark.parametrize("family", ["llava-next", "llava-onevision", "qwen2.5-vl"])
def test_a_spot_of_the_picture_is_seen_at_its_place_in_every_view(
    family: str, size: tuple[int, int], chats: dict[str, Chat]
) -> None:
    """From the file's pixels through the model's own processor; views of the whole, small, and joined."""
    width, height = size
    picture = Image.new("RGB", size, "#777777")
    picture.paste("#ee0000", (width // 6, height // 2, width // 6 + width // 5, height // 2 + height // 5))
    found = followed(chats[family], picture)
    assert len(found.units) == (1 if family == "qwen2.5-vl" else 2)
    for unit, shown in zip(found.units, found.pictures, strict=True):
        across, down = redness(shown)
        expected = redness(picture)
        assert abs(across - expected[0]) < 0.75 / unit.columns and abs(down - expected[1]) < 0.75 / unit.rows


@pytest.mark.parametrize("family", ["llava-1.5", "llava-next", "video-llava", "llava-onevision"])
def test_images_and_videos_together_account_for_every_token(family: str, chats: dict[str, Chat]) -> None:
    """Without V2V, where a Video-LLaVA brings CLS of frames alone, and a LLaVA-OneVision one crop of each image."""
    chat = chats[family]
    clip = Frames(tuple(pictures(4)), tuple(range(4)), 4, 2.0)
    first, second = pictures(2, 120, 61, seed=3)
    shown = [first, clip, second] if family != "llava-onevision" else [first, second]
    found = followed(chat, *shown)
    tokens = [token for unit in found.units for token in unit.tokens]
    assert tokens == sorted(tokens) and len(set(tokens)) == len(tokens) <= found.tokens
    assert max(tokens) < found.tokens
    assert len(found.units) == {"llava-1.5": 6, "llava-next": 8, "video-llava": 6, "llava-onevision": 2}[family]
