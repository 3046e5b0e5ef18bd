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
    """

    family: str
    decoder: DecoderShape
    image: SeenMedium
    video: SeenMedium | None = None
    frames: int = 0

    @classmethod
    def of(cls, name: str, aspect_ratio: str | None = None) -> ModelMedia:
        """Of a model in `KNOWN`, or of a checkpoint folder in LLaVA's format.

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
        if family not in (LLAVA, NEXT, VIDEO) or "vision_config" in config:
            raise ValueError(
                f"{name!r} is a {family} that is asked through its own processor; the check reads data for {LLAVA}, "
                f"{NEXT} and {VIDEO} in LLaVA's format. Other trainers check a record when they read it."
            )
        image = seen_by(config, _USUAL_IMAGES.get(family))
        if family != VIDEO:
            return cls(family, decoder, image)
        usual = usual_medium(family)
        frames = (config.get("mm_video_config") or {}).get("num_frames", usual.frames)
        return cls(family, decoder, image, seen_by(config, Medium(usual.width, usual.height, frames)), frames)
