"""Images and videos of one batch, as Video-LLaVA takes them: in one list, each with the tower of its kind.

An image [3, height, width] has one placeholder, a video [3, T, height, width] one for each of its T frames.
Shapes: B rows, T frames, M media of the batch, n visual tokens of an image or frame, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava.compression.config import V2VConfig
from llava.model.accepted_inputs import check_normalised
from llava.model.collectives import is_partitioned, ranks_must_agree
from llava.model.image_inputs import (
    check_one_shape,
    of_sequence,
    pixel_values_of,
    placeholders_of_rows,
    used_of_rows,
    warn_unseen,
)
from llava.model.placeholders import VisualSpan
from llava.model.splice import PlanSettings, SplicePlan

_AXES = {"image": 3, "video": 4}
_SHAPES = (
    "an image is [3, height, width], a video [3, frames, height, width], with the channels in front; several are a "
    "list of these, or one tensor [count, 3, ...]"
)


@dataclass(frozen=True)
class ShownMedia:
    """What a batch has to encode.

    Attributes:
        media: images [3, height, width] and videos [3, T, height, width] that prompts show, in reading order.
        towers: `image` and `video`, for those that run although nothing is shown of their kind.
    """

    media: list[Tensor]
    towers: tuple[str, ...] = ()


@dataclass(frozen=True)
class MixedPlanSettings(PlanSettings):
    """Of a model with a tower for images and one for videos.

    Attributes:
        tokens_per_frame: visual tokens of each frame of a video.
    """

    tokens_per_frame: int = 0

    @property
    def fixed(self) -> int | None:
        """As in `PlanSettings`; None, since a video is kept whole or not at all."""
        return None

    def counts(self, medium: Any) -> list[int]:
        """As in `PlanSettings`; one for an image, and one for each frame of a video."""
        return [self.tokens_per_image] if medium.dim() == 3 else [self.tokens_per_frame] * medium.shape[1]


def marks_of(medium: Tensor) -> int:
    """Placeholders of an image or a video."""
    return 1 if medium.dim() == 3 else int(medium.shape[1])


def shown_media(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    images: Any,
    plan: SplicePlan | None,
    training: bool,
    towers: Mapping[str, nn.Module],
) -> ShownMedia:
    """Which images and videos a batch has to encode, in the order of their placeholders.

    Where processes hold partitioned or trained towers together, both run in each batch, whatever it shows.

    Args:
        input_ids: int64 [B, columns] with `IMAGE_TOKEN_INDEX` where images and frames go; not looked at where there is
            a plan.
        attention_mask: [B, columns] or None.
        images: as `media_tensors` takes them. A row without a placeholder may bring one medium that is not shown: if
            one row does, in a list without rows, all have to.
        plan: plan of the batch, if its collator made one; media are then those of the placeholders.
        training: whether the model is.
        towers: the towers there are, by `image` and `video`.

    Raises:
        ValueError: if media and placeholders do not fit each other.
    """
    media, of_rows = media_tensors(images, _may_have_three_frames(towers.get("video")))
    if plan is not None:
        used = list(range(len(media))) if any(plan.counts) else []
    else:
        per_row = placeholders_of_rows(input_ids, attention_mask)
        used = _used(per_row, [marks_of(medium) for medium in media], of_rows)
    if media and not used and not training:
        warn_unseen()
    shown = [media[number] for number in used]
    for kind, axes in _AXES.items():
        if kind not in towers and any(medium.dim() == axes for medium in shown):
            raise ValueError(f"The model was given an {kind}, but it has no tower for such (mm_{kind}_tower).")
    idle = [kind for kind, tower in towers.items() if not any(medium.dim() == _AXES[kind] for medium in shown)]
    needed = tuple(kind for kind in idle if ranks_must_agree() and _runs_everywhere(towers[kind]))
    if training and media and not shown and not needed:
        needed = (next(iter(towers)),)  # the projector has a part in every step
    return ShownMedia(shown, needed)


def _runs_everywhere(tower: nn.Module) -> bool:
    return any(is_partitioned(weight) or weight.requires_grad for weight in tower.parameters())


def _used(per_row: list[int], marks: list[int], of_rows: list[int] | None) -> list[int]:
    """Numbers of the media that placeholders stand for, in order.

    Args:
        per_row: placeholders of each row.
        marks: placeholders that each medium needs.
        of_rows: media of each row, where they were given row by row.
    """
    if of_rows is not None:
        advice = "needs {}; an image needs one, a video one for each of its frames"
        return used_of_rows(per_row, marks, of_rows, advice)
    if sum(per_row) == 0:
        return []
    # Every row without a placeholder may have used up one medium, which nobody sees.
    for with_dummies in (False, True):
        found = _in_order(per_row, marks, with_dummies)
        if found is not None:
            return found
    needs = ", ".join(str(one) for one in marks) or "none"
    raise ValueError(
        f"The prompts hold {per_row} image placeholders row by row, but the images and videos need {needs} one after "
        "another; an image needs one, a video one for each of its frames, all in one row."
    )


def _in_order(per_row: list[int], marks: list[int], with_dummies: bool) -> list[int] | None:
    """Media in order, so that those of a row need as many placeholders as it has; None where they do not."""
    used: list[int] = []
    at = 0
    for marked in per_row:
        if marked == 0:
            at += with_dummies
            continue
        found = 0
        while found < marked and at < len(marks):
            found += marks[at]
            used.append(at)
            at += 1
        if found != marked:
            return None
    return used if at == len(marks) else None


def _may_have_three_frames(tower: Any) -> bool:
    """Whether a video may look like three images: [3, 3, height, width]."""
    return tower is not None and (not tower.config.add_time_attn or tower.num_frames == 3)


def media_tensors(images: Any, three_frames: bool = False) -> tuple[list[Tensor], list[int] | None]:
    """Images and videos of a batch in reading order, whatever they came as.

    Args:
        images: None; a tensor or array: [3, height, width], [M, 3, height, width], a video [3, T, height, width] or
            [M, 3, T, height, width]; a mapping that holds `pixel_values`; or a sequence of images and videos. A
            sequence of sequences holds those of each row.
        three_frames: whether a video of three frames may come, which looks like three images.

    Returns:
        the media, and how many each row has where that was said.

    Raises:
        ValueError: for anything else; says what it is and what to give.
    """
    if images is None:
        return [], None
    images = pixel_values_of(images, "images")
    if isinstance(images, Tensor):
        return _taken_apart(images, three_frames), None
    if not isinstance(images, list | tuple):
        raise ValueError(f"images is a {type(images).__name__}; {_SHAPES}.")
    return of_sequence(images, _one)


def _taken_apart(pixels: Tensor, three_frames: bool) -> list[Tensor]:
    """Media of one tensor: a single one, or several along the first axis."""
    shape = tuple(pixels.shape)
    if three_frames and pixels.dim() == 4 and shape[:2] == (3, 3):
        raise ValueError(f"images of shape {shape} may be three images or a video of three frames; put them in a list.")
    single = pixels.dim() == 3 or (pixels.dim() == 4 and shape[1] != 3)
    if single:
        return [_one(pixels, "images")]
    if pixels.dim() not in (4, 5):
        raise ValueError(f"images has shape {shape}; {_SHAPES}.")
    return [_one(one, f"images[{place}]") for place, one in enumerate(pixels)]


def _one(medium: Any, name: str) -> Tensor:
    """One image [3, height, width] or one video [3, T, height, width]."""
    pixels = pixel_values_of(medium, name)
    if isinstance(pixels, Tensor) and pixels.dim() in (4, 5) and pixels.shape[0] == 1:
        pixels = pixels[0]  # as a processor returns one
    if not isinstance(pixels, Tensor):
        raise ValueError(f"{name} is a {type(medium).__name__}; {_SHAPES}.")
    if pixels.dim() not in (3, 4) or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"{name} has shape {tuple(pixels.shape)}; {_SHAPES}.")
    check_normalised(name, pixels, "make the pixels with the model's own image and video processors")
    return pixels


def media_spans(model: Any, shown: ShownMedia, v2v: V2VConfig | None) -> list[VisualSpan]:
    """Visual tokens of what a batch shows: a span for each image and for each frame, in reading order.

    Towers run in the same order in every process: all images in one call, then all frames of all videos.

    Args:
        model: LLaVA with `encode_images` and `encode_videos`.
        shown: what `shown_media` gives.
        v2v: what shortens each image and frame by itself.
    """
    images = [medium for medium in shown.media if medium.dim() == 3]
    videos = [medium for medium in shown.media if medium.dim() == 4]
    unseen: list[VisualSpan] = []
    of_images: Iterator[Tensor] = iter(())
    of_frames: Iterator[Tensor] = iter(())
    if images:
        check_one_shape(image.shape for image in images)
        of_images = iter(model.encode_images(torch.stack([image.to(model.device) for image in images]), v2v))
    elif "image" in shown.towers:
        unseen += _unseen(model.encode_images(_blank(model.get_image_tower(), model), v2v))
    if videos:
        of_frames = iter(model.encode_videos([video.to(model.device) for video in videos], v2v))
    elif "video" in shown.towers:
        unseen += _unseen(model.encode_videos(_blank(model.get_video_tower(), model)[None].transpose(1, 2), v2v))
    found = []
    for medium in shown.media:
        found += [next(of_images)] if medium.dim() == 3 else [next(of_frames) for _ in range(medium.shape[1])]
    return [*(VisualSpan(tokens, 1) for tokens in found), *unseen]


def _unseen(encoded: Sequence[Tensor]) -> list[VisualSpan]:
    """A span without tokens, which keeps the tower and the projector in the step."""
    return [VisualSpan(encoded[0][:0], 0)]


def _blank(tower: Any, model: Any) -> Tensor:
    """Pixels [T, 3, height, width] of zeros: one image, or the frames of one video."""
    side, frames = tower.config.image_size, getattr(tower, "num_frames", 1)
    return torch.zeros(frames, 3, side, side, device=model.device, dtype=model.dtype)
