"""Kinds of Video-LLaVA: its towers, pixels of images and videos, frames taken, marks, and the mixed sequence.

Shapes: B clips or images, T frames of a clip, N tokens of a frame (CLS in front), D width, M images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava.compression import V2VConfig
from llava.data.frames import frame_numbers
from llava.data.video_marks import expand_marks, within_published_limits
from llava.mm_utils import preprocess_image
from llava.model.multimodal_encoder.encode import encode_images
from llava.model.multimodal_encoder.languagebind import languagebind_config
from llava.model.multimodal_encoder.languagebind_pixels import LanguageBindImageProcessor, LanguageBindVideoProcessor
from llava.model.multimodal_encoder.languagebind_towers import LanguageBindImageTower, LanguageBindVideoTower
from llava.verify import video_llava_prepare
from llava.verify.case import Case, UnreadableCaseError, read_json, read_weights
from llava.verify.case_settings import Deviation
from llava.verify.case_values import (
    Measured,
    Replayed,
    as_picture,
    choice_of,
    need_frames,
    need_list,
    recorded_with,
    require_agreement,
)
from llava.verify.models import ModelStore


@torch.no_grad()
def _replay_tower(case: Case, models: ModelStore) -> Replayed:
    """Hidden states, features, attention and what V2V scores by."""
    pixels = case.images()
    assert pixels is not None
    tower = _open_tower(case, models)
    pixels = pixels.to(tower.device)
    scored = tower.encode(pixels, V2VConfig(1 + 1, 1, 1))
    frames = pixels.transpose(1, 2).flatten(0, 1) if pixels.dim() == 5 else pixels
    depth = len(tower.model.encoder.layers)
    states = [tower.model.pre_layrnorm(tower.model.embeddings(frames))]
    states += [encode_images(tower.model, frames, layer).features for layer in range(1, depth + 1)]
    attention, pooled = _attention_of(tower.model, frames)
    lead = (len(pixels),) if pixels.dim() == 4 else (len(pixels), pixels.shape[2])  # [B] or [B, T]
    measured: Measured = {
        "features": tower(pixels).unflatten(0, lead),
        "hidden_states": torch.stack(states).unflatten(1, lead),
        "hidden_states_last": states[-1].unflatten(0, lead),
        "attention_second_last": attention,
        "pooler_output": pooled.unflatten(0, lead).mean(dim=1) if len(lead) == 2 else pooled,
        "cls_attention_sum": scored.cls_attention,
    }
    recorded = dict(case.outputs)
    of_scored_layer = tower.select_layer in (-2, depth - 1)
    if "attention_second_last" in recorded and of_scored_layer:  # [B * T, heads, N, N]
        recorded["cls_attention_sum"] = recorded["attention_second_last"][:, :, 0, 1:].sum(dim=1)
    return measured, recorded, []


def _open_tower(case: Case, models: ModelStore) -> Any:
    settings = read_json(case.model_folder / "config.json")
    read_weights(case.model_folder / "model.safetensors")  # whether they can be read
    pixels, inside = case.inputs["pixels_u8"], languagebind_config(settings)
    held = {"batch": len(pixels), "hidden_act": inside.hidden_act}
    if case.kind == "video_tower":
        held |= {"frames": pixels.shape[2], "num_frames_of_config": inside.num_frames}
        held |= {"add_time_attn": inside.add_time_attn}
    require_agreement(case, held)
    depth = inside.num_hidden_layers
    layer = choice_of(case, "select_layer", [*range(-depth, 0), *range(1, depth + 1)]) or -2
    if case.kind == "video_tower":
        tower: Any = LanguageBindVideoTower(str(case.model_folder), layer, settings)
    else:
        tower = LanguageBindImageTower(str(case.model_folder), layer, "patch", settings)
    tower.load_model()
    return tower.to(models.device).float().eval()


def _attention_of(model: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [B * T, heads, N, N] of the last layer but one within frames, and the pooled CLS [B * T, D]."""
    seen: list[Tensor] = []
    attention = model.encoder.layers[-2].self_attn
    hook = attention.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the fused kernel gives no attention
    try:
        pooled: Tensor = model(frames).pooler_output
    finally:
        hook.remove()
        model.set_attn_implementation(usual)
    return seen[0], pooled


def _replay_video_pixels(case: Case, models: ModelStore) -> Replayed:
    frames = case.inputs["frames_u8"]
    if frames.dim() != 4 or not len(frames):
        raise UnreadableCaseError(f"'frames_u8' has shape {list(frames.shape)}; it must be [frames, height, width, 3].")
    count = need_frames(case)
    taken = frame_numbers(len(frames), count)
    pictures = [as_picture(frames[number]) for number in taken]
    height, width = pictures[0].height, pictures[0].width
    require_agreement(case, {"height": height, "width": width, "total_frames": len(frames)})
    mirrored = bool(choice_of(case, "flipped", (False, True)))
    pixels = LanguageBindVideoProcessor(count).pixels(pictures, mirrored)
    return {"frame_ids": torch.tensor(taken), **_planes(case, pixels)}, recorded_with(case, "output_shape"), []


def _replay_image_pixels(case: Case, models: ModelStore) -> Replayed:
    picture = as_picture(case.inputs["image_u8"])
    require_agreement(case, {"height": picture.height, "width": picture.width})
    shape = choice_of(case, "image_aspect_ratio", ("square", "pad"))
    measured = _planes(case, preprocess_image(picture, LanguageBindImageProcessor(), shape))
    if "variant_antialias_sample" in case.outputs:
        smooth = preprocess_image(picture, LanguageBindImageProcessor(antialias=True), shape)
        measured["variant_antialias_sample"] = _sample(case, smooth)
    return measured, recorded_with(case, "output_shape"), []


def _planes(case: Case, pixels: Tensor) -> Measured:
    """What a case records of pixels [..., height, width]: places of every plane, and sums over the whole of it."""
    return {
        "sample_ids": case.outputs.get("sample_ids"),
        "sample": _sample(case, pixels),
        "sum": pixels.double().sum(dim=(-2, -1)),
        "sum_of_squares": pixels.double().square().sum(dim=(-2, -1)),
        "output_shape": torch.tensor(pixels.shape),
    }


def _sample(case: Case, pixels: Tensor) -> Tensor:
    if "sample_ids" not in case.outputs:
        raise UnreadableCaseError("outputs.safetensors has no 'sample_ids', which say what 'sample' holds.")
    places = case.outputs["sample_ids"]
    if not all(0 <= place < min(pixels.shape[-2:]) for place in places.tolist()):
        raise UnreadableCaseError(f"'sample_ids' names rows or columns that {list(pixels.shape[-2:])} pixels lack.")
    return pixels[..., places, :][..., places]


def _replay_frame_ids(case: Case, models: ModelStore) -> Replayed:
    measured: Measured = {}
    for name, ids in case.outputs.items():
        _, total, _, count = name.split("_")
        if int(total) < 1 or list(ids.shape) != [int(count)]:
            raise UnreadableCaseError(f"{name!r} in outputs.safetensors has shape {list(ids.shape)}.")
        measured[name] = torch.tensor(frame_numbers(int(total), int(count)))
    counts = case.settings.get("num_frames")
    counts = need_list(case, "num_frames") if isinstance(counts, list) else [need_frames(case)]
    asked = [(total, count) for total in need_list(case, "totals") for count in counts]
    for total, count in asked:
        if f"total_{total}_frames_{count}" not in case.outputs:
            raise UnreadableCaseError(f"outputs.safetensors has no 'total_{total}_frames_{count}', which is listed.")
    return measured, dict(case.outputs), _rounded_in_floats(case)


def _rounded_in_floats(case: Case) -> list[Deviation]:
    """Where the published program's `numpy.linspace` falls just below a whole number, it takes the frame before."""
    lower = []
    for name, ids in case.outputs.items():
        _, total, _, count = name.split("_")
        published = np.linspace(0, int(total) - 1, int(count), dtype=int).tolist()
        if published == ids.tolist() != frame_numbers(int(total), int(count)):
            lower.append(name)
    reason = "the published program rounds in floating point and takes the frame before where a number is whole"
    return [Deviation(reason, "|".join(lower))] if lower else []


def _replay_marks(case: Case, models: ModelStore) -> Replayed:
    """Turns as numbers of their characters; an error of the published program as an empty one."""
    measured: Measured = {}
    recorded: dict[str, Tensor] = {}
    turns = need_list(case, "turns")
    if not turns:
        raise UnreadableCaseError("turns is empty in case.json, so there is nothing to compare.")
    for number, turn in enumerate(turns):
        if (
            not isinstance(turn, Mapping)
            or not isinstance(turn.get("in"), str)
            or not ("out" in turn or "error" in turn)
        ):
            raise UnreadableCaseError(f"turn {number} in case.json is {turn!r}; it needs 'in', and 'out' or 'error'.")
        name = f"turn {number}"
        recorded[name] = _characters(None if "error" in turn else str(turn["out"]))
        try:
            written = within_published_limits(turn["in"])
        except ValueError:
            measured[name] = _characters(None)
            continue
        frames, marks = need_frames(case), bool(choice_of(case, "mm_use_im_start_end", (False, True)))
        measured[name] = _characters(expand_marks(written, frames, marks))
    return measured, recorded, []


def _characters(text: str | None) -> Tensor:
    return torch.tensor([-1] if text is None else [ord(character) for character in text], dtype=torch.long)


REPLAYS: dict[str, Callable[[Case, ModelStore], Replayed]] = {
    "video_tower": _replay_tower,
    "image_tower": _replay_tower,
    "video_processing": _replay_video_pixels,
    "image_processing": _replay_image_pixels,
    "frame_ids": _replay_frame_ids,
    "marks": _replay_marks,
    "video_llava_prepare": video_llava_prepare.replay,
}
