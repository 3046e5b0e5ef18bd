"""What images and videos become in the model that a data set is checked for, before any is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llava.common.presets import family_of
from llava.cost.dimensions import DecoderShape
from llava.cost.seen_media import Medium, SeenMedium, seen_by, usual_medium
from llava.cost.shapes import MODELS, config_of, model_shape
from llava.data.check.check_settings import LLAVA, NEXT, VIDEO

_USUAL_IMAGES = {NEXT: Medium(640, 480), VIDEO: Medium(224, 224)}
"""Where images differ: the size that is usual in LLaVA's data."""
_NEXT: dict[str, Any] = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
_OF_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llava-next-7b": ("llava-1.5-7b", _NEXT),
    "llava-next-13b": ("llava-1.5-13b", _NEXT),
    "video-llava-7b": ("llava-1.5-7b", {"mm_video_tower": "LanguageBind/LanguageBind_Video_merge"}),
}
BY_PROCESSOR = ("qwen2.5-vl", "qwen3-vl", "llava-onevision")
"""Families whose inputs their own processor makes, image by image and second by second."""
_USUAL_VIDEO = Medium(640, 480, 8)
KNOWN = (*MODELS, *_OF_FAMILIES)
"""Models that need no checkpoint."""


@dataclass(frozen=True)
class ModelMedia:
    """How a model is shown images and videos.

    Attributes:
        family: one of the native tree, a key of `llava.common.presets.FAMILIES`.
        decoder: dimensions of the language model.
        image: a usual image, as the model sees it.
        video: a video likewise; None for a model that is trained on none.
        frames: frames of it that are shown; 0 without.
        by_processor: whether the family's own processor and chat template make the inputs.
    """

    family: str
    decoder: DecoderShape
    image: SeenMedium
    video: SeenMedium | None = None
    frames: int = 0
    by_processor: bool = False

    @classmethod
    def of(cls, name: str, aspect_ratio: str | None = None) -> ModelMedia:
        """Of a model in `KNOWN`, or of a checkpoint folder: LLaVA's format, or a family with a processor of its own.

        Args:
            name: name of the model.
            aspect_ratio: `image_aspect_ratio` of training; `anyres` makes a LLaVA a LLaVA-NeXT.

        Raises:
            ValueError: if there is no such model, or one of another family.
        """
        base, more = _OF_FAMILIES.get(name, (name, {}))
        config = {"model_type": "llava_llama", **(config_of(base) or {}), **more}
        if str(aspect_ratio).startswith("anyres") and family_of(config) in (LLAVA, NEXT):
            config = {"mm_patch_merge_type": "spatial_unpad", **config, "image_aspect_ratio": aspect_ratio}
        family, (decoder, _) = family_of(config), model_shape(base)
        if family in BY_PROCESSOR:
            usual = _USUAL_VIDEO
            image = seen_by(config, Medium(usual.width, usual.height))
            return cls(family, decoder, image, seen_by(config, usual), usual.frames, by_processor=True)
        if family not in (LLAVA, NEXT, VIDEO) or "vision_config" in config:
            raise ValueError(
                f"{name!r} is a {family} in transformers' format, whose data the check does not read; it reads that of "
                f"{LLAVA}, {NEXT} and {VIDEO} in LLaVA's format, and of {', '.join(BY_PROCESSOR)}."
            )
        image = seen_by(config, _USUAL_IMAGES.get(family))
        if family != VIDEO:
            return cls(family, decoder, image)
        usual = usual_medium(family)
        frames = (config.get("mm_video_config") or {}).get("num_frames", usual.frames)
        return cls(family, decoder, image, seen_by(config, Medium(usual.width, usual.height, frames)), frames)
