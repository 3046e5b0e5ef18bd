"""Kinds of LLaVA-NeXT: the canvas of an image, its crops, merged crops and frames, and the mixed sequence.

Shapes: M images, K crops of one, P patches of a crop, B rows, L positions after splicing, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil

from llava.common.anyres import canvases_of
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.mm_utils import get_anyres_image_grid_shape, process_anyres_image, select_best_resolution
from llava.model import LlavaLlamaForCausalLM
from llava.model.crop_merging import CropMerging, merge_frames, pooled_frames
from llava.model.loss import labels_at
from llava.verify import deviations
from llava.verify.case import Case, UnreadableCaseError
from llava.verify.case_values import (
    Measured,
    Replayed,
    as_picture,
    choice_of,
    longest_row,
    need,
    need_number,
    need_tensor,
    recorded_with,
    require_agreement,
)
from llava.verify.models import ModelStore


def _replay_choice(case: Case, models: ModelStore) -> Replayed:
    side, patches = (need_number(case, name) for name in ("crop_size", "patches_per_side"))
    pinpoints = need(case, "pinpoints")
    merging = CropMerging.of("spatial_unpad", "anyres", pinpoints, side, patches)
    found: dict[str, list[Any]] = {"best": [], "grid": [], "map_after_unpad": [], "tokens_spatial_unpad": []}
    for size in case.inputs["sizes"].tolist():
        grid = get_anyres_image_grid_shape(size, pinpoints, side)
        found["best"].append(select_best_resolution(size, canvases_of(pinpoints, side)))
        found["grid"].append(grid)
        found["map_after_unpad"].append(merging.map_shape(size, grid))
        found["tokens_spatial_unpad"].append(merging.count(1 + math.prod(grid), size))
    return {name: torch.tensor(values) for name, values in found.items()}, dict(case.outputs), []


def _replay_pixels(case: Case, models: ModelStore) -> Replayed:
    side, pinpoints = need_number(case, "crop_size"), need(case, "pinpoints")
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    measured: Measured = {}
    for name in case.outputs:
        image = as_picture(need_tensor(case, f"image_{_last(name)}_u8"))
        measured[name] = process_anyres_image(image, processor, pinpoints)
    return measured, dict(case.outputs), []


def _replay_merge(case: Case, models: ModelStore) -> Replayed:
    merging = CropMerging.of(
        need(case, "mm_patch_merge_type"),
        _ratio(case),
        case.settings.get("image_grid_pinpoints"),
        need_number(case, "crop_size"),
        need_number(case, "patches_per_side"),
    )
    newline, recorded = case.inputs.get("image_newline"), recorded_with(case, "tokens")
    measured: Measured = {}
    for name in case.outputs:
        features, size = need_tensor(case, f"features_{_last(name)}"), case.inputs["image_sizes"][_last(name)].tolist()
        measured[name] = merging.merge(features.to(models.device), size, newline)
        measured[f"tokens_{name}"] = torch.tensor(merging.count(len(features), size))
        recorded[f"tokens_{name}"] = torch.tensor(len(case.outputs[name]))
    names = sorted(case.outputs, key=_last)
    measured["tokens"] = torch.stack([measured[f"tokens_{name}"] for name in names])  # type: ignore[misc]
    return measured, recorded, []


def _replay_video(case: Case, models: ModelStore) -> Replayed:
    features = case.inputs["features"].to(models.device)
    held = {"frames": len(features), "patches_per_side": math.isqrt(features.shape[1])}
    require_agreement(case, held | {"pool_stride_used": 2})
    frames = pooled_frames(features, need(case, "mm_spatial_pool_mode"))
    newline = case.inputs.get("image_newline")
    merge_type, position = need(case, "mm_patch_merge_type"), need(case, "mm_newline_position")
    merged = merge_frames(frames, merge_type, position, newline)
    return {"merged": merged, "tokens": torch.tensor(len(merged))}, recorded_with(case, "tokens"), []


@torch.no_grad()
def _replay_prepare(case: Case, models: ModelStore) -> Replayed:
    model, ids = models.open(case.model_folder), case.inputs["input_ids"]
    labels, mask = case.inputs.get("labels"), case.inputs.get("attention_mask")
    _ratio(case)
    longest, side = longest_row(case), choice_of(case, "tokenizer_padding_side", ("left", "right"))
    if longest is not None and labels is None:
        labels = torch.full_like(ids, IGNORE_INDEX)  # a prompt without any is not cut here
    images, sizes = _images(case, ids if mask is None else ids.masked_fill(~mask.bool(), 0))
    with _configured(model, case.settings):
        embeddings, layout = model.prepare_multimodal_inputs(
            ids.to(model.device), mask, labels, images, padding_side=side or "right", image_sizes=sizes
        )
        output = model(inputs_embeds=embeddings, layout=layout, labels=labels, return_logits=True)
        pixels = torch.cat(_whole(case))
        features: Any = model.require_tower()(pixels)
        projected: Any = model.encode_images(pixels)
    last = layout.valid.long().cumsum(dim=1).argmax(dim=1)
    targets = None if labels is None else labels_at(layout, labels)
    measured: Measured = {
        "inputs_embeds": embeddings,
        "attention_mask": layout.valid,
        "position_ids": layout.positions,
        "labels": targets,
        "loss": output.loss,
        "logits_last": output.logits[torch.arange(len(last)), last.to(output.logits.device)],
        "tower_features": features,
        "projected": projected,
        "row_lengths": layout.valid.sum(dim=1),
    }
    return measured, recorded_with(case, "row_lengths"), deviations.of_loss(targets)


def _whole(case: Case) -> list[Tensor]:
    """All pictures of a case, [K, 3, S, S] each."""
    count = sum(name.startswith("pixel_values_") for name in case.inputs)
    pictures = [need_tensor(case, f"pixel_values_{number}") for number in range(count)]
    return [picture if picture.dim() == 4 else picture[None] for picture in pictures]


def _images(case: Case, ids: Tensor) -> tuple[Any, Any]:
    """The pictures that marks show and their sizes, in the form in which the case handed them in.

    A row without a mark uses up one picture, which nobody sees.
    """
    marks = (ids == IMAGE_TOKEN_INDEX).sum(dim=1).tolist()
    pictures, sizes = _whole(case), need_tensor(case, "image_sizes").tolist()
    needed = sum(max(count, 1) for count in marks)
    if len(pictures) != needed or len(sizes) != needed:
        raise UnreadableCaseError(
            f"inputs.safetensors holds {len(pictures)} pictures and {len(sizes)} sizes, but the rows use up {needed}."
        )
    shown: list[int] = []
    first = 0
    for count in marks:
        shown += range(first, first + count)
        first += max(count, 1)
    kept, kept_sizes = [pictures[number] for number in shown], [sizes[number] for number in shown]
    if not kept:
        return None, None
    form = str(case.settings.get("images_form") or "list")
    if "list" not in form and "stacked" not in form:
        raise UnreadableCaseError(f"images_form is {form!r} in case.json; it must be a list or one stacked tensor.")
    if "stacked" in form:
        stacked = torch.stack(kept)  # [M, K, 3, S, S]
        return stacked if case.inputs["pixel_values_0"].dim() == 4 else stacked.squeeze(1), kept_sizes
    return kept, kept_sizes


@contextmanager
def _configured(model: LlavaLlamaForCausalLM, settings: Mapping[str, Any]) -> Iterator[None]:
    """Let a model have the settings of a case as long as it is replayed; it may serve others."""
    names = ("mm_patch_merge_type", "image_aspect_ratio", "image_grid_pinpoints", "tokenizer_model_max_length")
    given = {name: settings[name] for name in names if name in settings}
    former = {name: getattr(model.config, name) for name in given}
    try:
        for name, value in given.items():
            setattr(model.config, name, value)
        yield
    finally:
        for name, value in former.items():
            setattr(model.config, name, value)


def _ratio(case: Case) -> str | None:
    said = case.settings.get("image_aspect_ratio")
    if said is not None and not isinstance(said, str):
        raise UnreadableCaseError(f"image_aspect_ratio is {said!r} in case.json; it must be a word such as anyres.")
    return said


def _last(name: str) -> int:
    return int(name.rpartition("_")[2])


REPLAYS: dict[str, Callable[[Case, ModelStore], Replayed]] = {
    "anyres_choice": _replay_choice,
    "anyres_pixels": _replay_pixels,
    "next_merge": _replay_merge,
    "next_video": _replay_video,
    "next_prepare": _replay_prepare,
}
"""How each kind of LLaVA-NeXT is replayed."""
