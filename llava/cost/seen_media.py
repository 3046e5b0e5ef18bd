"""What an image or a video of a certain size is to a model, told from its `config.json` alone.

A *unit* is what the tower encodes by itself and what V2V shortens by itself: an image, a crop, a frame, or (in Qwen's
towers) two frames. Rules of LLaVA-NeXT's crops stand in `llava.common.anyres`; Qwen's image processor makes each side a
multiple of 28 (or 32) pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from llava.common.presets import family_of
from llava.compression.config import V2VConfig
from llava.cost.dimensions import CLIP_L_336, VisionShape
from llava.cost.towers import tower_shape

_LANGUAGE_BIND: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "image_size": 224,
    "patch_size": 14,
    "num_frames": 8,
    "add_time_attn": True,
}
_POOLED = 2  # LLaVA-OneVision halves both sides of a frame's patches
_LEAST_SHRINKING = 1.1  # of `anyres_max_N`: smaller maps stay as they are


@dataclass(frozen=True)
class Medium:
    """An image or a video that a model is shown.

    Attributes:
        width, height: size in pixels, before it is prepared.
        frames: that are shown of a video; 0 is an image.
    """

    width: int
    height: int
    frames: int = 0

    def __str__(self) -> str:
        size = f"{self.width}x{self.height}"
        return f"video of {self.frames} frames of {size}" if self.frames else f"image of {size}"


PIXEL_LIMITS = "image pixels"
"""Beside what a `config.json` holds: fewest and most pixels of an image, as its processor's file has them."""
USUAL = {
    "llava-next": Medium(672, 672),
    "video-llava": Medium(224, 224, 8),
    "qwen2.5-vl": Medium(896, 896),
    "qwen3-vl": Medium(896, 896),
    "llava-onevision": Medium(768, 768),
}
"""What costs are told of where nothing else is asked for; LLaVA-NeXT's has five crops."""


@dataclass(frozen=True)
class SeenMedium:
    """A medium as a model sees it.

    Attributes:
        tower: that encodes it.
        units: number of its units.
        positions: tokens that the tower computes for a unit, CLS included.
        found: tokens among which V2V chooses in a unit, CLS included.
        plain: visual tokens of the whole medium without V2V.
        beside: visual tokens of it that are not V2V's, with V2V: a newline.
        caps: whether a unit with fewer tokens than the budget keeps all; others refuse such a budget.
        shrunk: number by which the budget of each unit but the first is divided.
        projector: inputs and outputs of each linear map of the projector; None for LLaVA's MLP of two.
        projects_all: whether the projector runs in front of V2V, on every token.
        pooled: positions that become one token between projector and V2V, on average.
        windows: positions of each window of a unit, in towers whose layers attend within windows.
    """

    tower: VisionShape
    units: int
    positions: int
    found: int
    plain: int
    beside: int = 0
    caps: bool = False
    shrunk: float = 1.0
    projector: tuple[tuple[int, int], ...] | None = None
    projects_all: bool = False
    pooled: float = 1.0
    windows: tuple[int, ...] | None = None

    @classmethod
    def of(cls, tower: VisionShape) -> SeenMedium:
        """One image of a tower whose images all have one size."""
        return cls(tower, 1, tower.tokens, tower.tokens, tower.patches)

    def several(self, frames: int) -> SeenMedium:
        """The same for each frame of a video, for models that take frames for images; 0 leaves an image one."""
        return dataclasses.replace(self, units=frames or 1, plain=(frames or 1) * self.plain)

    def visual_tokens(self, v2v: V2VConfig | None) -> int:
        """Visual tokens in the first decoder layer.

        Raises:
            ValueError: if the budget keeps more tokens than a unit has, and is no cap.
        """
        if v2v is None:
            return self.plain
        kept = min(sum(v2v.counts(self.found)), self.found) if self.caps else v2v.token_count(self.found)
        if self.shrunk == 1:
            return self.units * kept + self.beside
        dominant, contextual = v2v.counts(self.found)
        fewer = max(1, int(dominant / self.shrunk)) + int(contextual / self.shrunk)
        return kept + (self.units - 1) * fewer + self.beside

    def flops(self) -> int:
        """Forward FLOPs of the tower, without the projector."""
        return self.units * self.tower.flops(self.positions, self.windows)

    def projector_flops(self, entered: int, width: int) -> int:
        """Forward FLOPs of the projector.

        Args:
            entered: visual tokens of the medium in the first decoder layer.
            width: width of the decoder.
        """
        maps = ((self.tower.width, width), (width, width)) if self.projector is None else self.projector
        shrinks = self.shrunk > 1 and entered == self.plain  # a map is shrunk behind the projector
        tokens = self.units * self.found * self.pooled if self.projects_all or shrinks else entered - self.beside
        return 2 * round(tokens) * sum(inputs * outputs for inputs, outputs in maps)


Vision = VisionShape | SeenMedium
"""What a sample shows several times: an image of a tower whose images all have one size, or a medium of any family."""


def tower_of(vision: Vision) -> VisionShape:
    """The tower that sees it."""
    return vision if isinstance(vision, VisionShape) else vision.tower


def seen(vision: Vision) -> SeenMedium:
    """Either of them as a medium."""
    return SeenMedium.of(vision) if isinstance(vision, VisionShape) else vision


def usual_medium(config: Mapping[str, Any] | str) -> Medium:
    """What costs of a model are told of where nothing else is asked for.

    Args:
        config: what its `config.json` holds, or its family.
    """
    usual = USUAL.get(family_of(config), Medium(336, 336))
    settings = {} if isinstance(config, str) else config.get("mm_video_config") or {}
    return dataclasses.replace(usual, frames=settings.get("num_frames", usual.frames)) if usual.frames else usual


def seen_by(config: Mapping[str, Any], medium: Medium | None = None, together: int = 1) -> SeenMedium:
    """A medium as a model sees it.

    Args:
        config: what the model's `config.json` holds; towers that it only names are taken for CLIP-L at 336 (or
            LanguageBind's, of a Video-LLaVA).
        medium: None for the usual one of the family.
        together: how many of them a prompt shows; LLaVA-OneVision cuts an image only where it is alone.

    Raises:
        ValueError: if the model cannot be shown it.
    """
    family = family_of(config)
    medium = medium or usual_medium(config)
    match family:
        case "llava-next":
            return _crops(_clip(config), medium, _Merging.of(config))
        case "video-llava":
            return _of_video_llava(config, medium)
        case "qwen2.5-vl" | "qwen3-vl":
            return _of_qwen(config, medium)
        case "llava-onevision":
            return _of_onevision(config, medium, together)
    return SeenMedium.of(_clip(config)).several(medium.frames)


def _clip(config: Mapping[str, Any]) -> VisionShape:
    """A tower like CLIP's, as far as it runs; `cls_patch` makes the CLS token a patch like others."""
    settings = config.get("mm_vision_config") or config.get("vision_config")
    if not settings:
        tower = CLIP_L_336
    else:
        select = config.get("mm_vision_select_layer", config.get("vision_feature_layer", -2))
        tower = tower_shape(SimpleNamespace(**{"model_type": "clip_vision_model", **settings}), select)
    if (
        "cls_patch" in str(config.get("mm_vision_select_feature"))
        or config.get("vision_feature_select_strategy") == "full"
    ):
        tower = dataclasses.replace(tower, patches=tower.tokens, has_cls=False)
    return tower


@dataclass(frozen=True)
class _Merging:
    """How the patches of crops become one sequence.

    Attributes:
        pinpoints: canvases, [width, height] each, in any form that `canvases_of` reads; None for LLaVA-1.6's.
        kind: `mm_patch_merge_type`.
        most: crops of whose patches a larger map is shrunk; None shrinks none.
    """

    pinpoints: Any
    kind: str
    most: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Merging:
        own = "vision_config" not in config
        kind = config.get("mm_patch_merge_type") or ("flat" if own else "spatial_unpad")
        pinpoints = config.get("image_grid_pinpoints")
        from llava.common.anyres import most_crops  # needs Pillow, without which the schedule's module is imported

        return cls(pinpoints if own else _width_first(pinpoints), kind, most_crops(config.get("image_aspect_ratio")))


def _width_first(pinpoints: Any) -> Any:
    """Canvases of transformers, which writes their height first; what are none stay as they are, to be refused."""
    try:
        return [[width, height] for height, width in pinpoints]
    except (TypeError, ValueError):
        return pinpoints


def _crops(
    tower: VisionShape, medium: Medium, merging: _Merging, side: int | None = None, shrinks: bool = False
) -> SeenMedium:
    """The crops of an image, the squeezed whole first; frames of a video are crops that are not merged.

    Args:
        side: pixels on a side of a crop; None where its patches fill it.
        shrinks: whether budgets of crops shrink with a map that is too large.
    """
    one = SeenMedium.of(tower)
    if medium.frames:
        return one.several(medium.frames)
    across = math.isqrt(tower.patches)
    side = side or across * math.isqrt(tower.patch_values // 3)
    from llava.common.anyres import best_canvas, canvases_of, default_pinpoints, unpadded

    canvases = canvases_of(merging.pinpoints or default_pinpoints(side), side)
    width, height = best_canvas((medium.width, medium.height), canvases)
    crops = 1 + (width // side) * (height // side)
    columns, rows = width // side * across, height // side * across
    base = 0 if "nobase" in merging.kind else tower.patches
    if "maxpool2x2" in merging.kind:
        plain = base + (rows // 2) * (columns // 2)
    elif "unpad" in merging.kind:
        in_rows, in_columns = unpadded(columns, rows, (medium.width, medium.height))
        rows, columns = max(in_rows.stop - in_rows.start, 0), max(in_columns.stop - in_columns.start, 0)
        excess = 0.0 if merging.most is None else rows * columns / (merging.most * across**2)
        times = math.sqrt(excess)
        if times > _LEAST_SHRINKING:
            one = dataclasses.replace(one, shrunk=excess if shrinks else 1.0)
            rows, columns = max(int(rows // times), 1), max(int(columns // times), 1)
        plain = base + rows * (columns + 1)
    else:
        plain = base + rows * columns
    return dataclasses.replace(one, units=crops, plain=plain)


def _of_video_llava(config: Mapping[str, Any], medium: Medium) -> SeenMedium:
    """Frames with the tower of videos, whose CLS tokens are shown too; images with the other.

    In LLaVA's own format the former is LanguageBind's, which attends over time; transformers' is CLIP's.
    """
    own = "vision_config" not in config
    settings = config.get("vision_config") or config.get("mm_video_config" if medium.frames else "mm_image_config")
    settings = {**_LANGUAGE_BIND, "add_time_attn": own and bool(medium.frames), **(settings or {})}
    select = config.get("mm_vision_select_layer", config.get("vision_feature_layer", -2))
    tower = tower_shape(SimpleNamespace(**settings), select)
    if not medium.frames:
        return SeenMedium.of(tower)
    clip = int(settings["num_frames"])
    if own and medium.frames % clip:
        raise ValueError(f"The video tower takes clips of {clip} frames, not {medium.frames}; ask for {clip}.")
    return dataclasses.replace(SeenMedium.of(tower), units=medium.frames, plain=medium.frames * tower.tokens)


def of_video_llava(config: Mapping[str, Any]) -> list[tuple[Medium, int]]:
    """A medium for each tower of a Video-LLaVA in LLaVA's own format, and how many layers the tower holds."""
    found = []
    for key, frames in (("mm_image_config", 0), ("mm_video_config", 1)):
        settings = {**_LANGUAGE_BIND, **(config.get(key) or {})}
        found.append((Medium(224, 224, frames * settings["num_frames"]), settings["num_hidden_layers"]))
    return found


def _of_qwen(config: Mapping[str, Any], medium: Medium) -> SeenMedium:
    """Images at their own size, frames in pairs, patches merged two by two by a projector inside the tower."""
    settings = {"in_channels": 3, "temporal_patch_size": 2, "spatial_merge_size": 2, **config["vision_config"]}
    tower, merge = tower_shape(SimpleNamespace(**settings)), settings["spatial_merge_size"]
    step = settings["patch_size"] * merge
    limits = None if medium.frames else config.get(PIXEL_LIMITS)
    rows, columns = (groups * merge for groups in _groups(medium.height, medium.width, step, limits))
    inside, outside = tower.width * merge**2, settings.get("out_hidden_size", tower.width)
    mergers = 1 + len(settings.get("deepstack_visual_indexes") or ())
    units, windows = max(math.ceil(medium.frames / settings["temporal_patch_size"]), 1), None
    if tower.windowed:
        side = settings["window_size"] // step * merge
        if side < 1:
            raise ValueError(
                f"window_size of the vision tower is {settings['window_size']}; it must be at least {step}."
            )
        parts = [[min(side, length - first) for first in range(0, length, side)] for length in (rows, columns)]
        windows = tuple(high * wide for high in parts[0] for wide in parts[1])
    groups = rows * columns // merge**2
    return SeenMedium(
        tower,
        units,
        positions=rows * columns,
        found=groups,
        plain=units * groups,
        caps=True,
        projector=((inside, inside), (inside, outside)) * mergers,
        projects_all=True,
        windows=windows,
    )


def _groups(height: int, width: int, step: int, limits: tuple[int, int] | None) -> tuple[int, int]:
    """Groups of patches, down and across, of an image that Qwen's processor brings within limits.

    Args:
        height, width: in pixels.
        step: pixels on a side of a group.
        limits: fewest and most pixels; None where they are not known.
    """
    down, across = max(round(height / step), 1), max(round(width / step), 1)
    if limits is None:
        return down, across
    fewest, most = limits
    if down * across * step**2 > most:
        shrink = math.sqrt(height * width / most)
        return max(int(height / shrink // step), 1), max(int(width / shrink // step), 1)
    if down * across * step**2 < fewest:
        grow = math.sqrt(fewest / (height * width))
        return math.ceil(height * grow / step), math.ceil(width * grow / step)
    return down, across


def _of_onevision(config: Mapping[str, Any], medium: Medium, together: int) -> SeenMedium:
    """SigLIP on crops, without CLS tokens; patches of frames are pooled, and one newline ends the video."""
    settings = {"model_type": "siglip_vision_model", **config["vision_config"]}
    tower = tower_shape(SimpleNamespace(**settings), config.get("vision_feature_layer", -1))
    if medium.frames:
        pooled, frames = math.ceil(math.isqrt(tower.patches) / _POOLED) ** 2, medium.frames
        return SeenMedium(
            tower,
            frames,
            tower.tokens,
            pooled,
            frames * pooled + 1,
            beside=1,
            caps=True,
            projects_all=True,
            pooled=tower.patches / pooled,
        )
    from llava.common.anyres import is_anyres, most_crops

    aspect = config.get("vision_aspect_ratio", "anyres_max_9")
    if not is_anyres(aspect):
        return SeenMedium.of(tower)
    if together > 1:
        return dataclasses.replace(SeenMedium.of(tower), plain=tower.patches + 1, beside=1)
    merging = _Merging(_width_first(config["image_grid_pinpoints"]), "spatial_unpad", most_crops(aspect))
    return _crops(tower, medium, merging, settings["image_size"], shrinks=True)
