"""Flags of Qwen's training that bound the size of images and videos; what is saved with the model is bound too."""

from __future__ import annotations

import logging
from typing import Any

from llava.compression.config import CompressionConfig
from llava.data.media_limits import MediaLimits
from llava.train.arguments import DataArguments

logger = logging.getLogger(__name__)

LIMITS = ("min_pixels", "max_pixels", "video_min_pixels", "video_max_pixels", "video_min_frames", "video_max_frames")
"""Fields of `DataArguments` and of `MediaLimits`."""


def with_limits(processor: Any, data_args: DataArguments) -> Any:
    """The processor with the limits of the flags; with `--video_fps` too, so that the saved model is asked by it.

    Args:
        processor: processor of transformers, or its parts.
        data_args: arguments of the run.

    Raises:
        ValueError: if it has no such limits, or the smaller of two is above the larger; names the flag.
    """
    asked: dict[str, Any] = {name: getattr(data_args, name) for name in LIMITS}
    if hasattr(getattr(processor, "video_processor", None), "fps"):
        asked["video_fps"] = data_args.video_fps
    return MediaLimits(**asked).applied_to(processor)


def warn_of_idle_budget(processor: Any, compression: CompressionConfig) -> None:
    """Say where no image can have more tokens than V2V leaves it, so that nothing is merged.

    Args:
        processor: processor with its limits.
        compression: compression of the run.
    """
    images, v2v = processor.image_processor, compression.v2v
    largest = (getattr(images, "size", None) or {}).get("longest_edge")
    side = getattr(images, "patch_size", 0) * getattr(images, "merge_size", 0)
    if v2v is None or not largest or not isinstance(side, int) or not side:
        return
    tokens = largest // side**2
    if sum(v2v.counts(tokens)) >= tokens:
        logger.warning(
            "An image has at most %d tokens (--max_pixels %d), and v2v leaves it %d: nothing is merged. Raise "
            "--max_pixels, or give a budget in shares such as qwen-share-70.",
            tokens,
            largest,
            sum(v2v.counts(tokens)),
        )


def refuse_limits(data_args: DataArguments, name: str, kind: str) -> None:
    """Raise ValueError where a limit is given for a model whose images all have one size.

    Args:
        data_args: arguments of the run.
        name: `--model_name_or_path`.
        kind: its `model_type`.
    """
    given = [flag for flag in LIMITS if getattr(data_args, flag) is not None]
    if given:
        raise ValueError(
            f"--{given[0]} {getattr(data_args, given[0])} is a flag of models that keep the size of an image, such as "
            f"Qwen's, but {name!r} is a {kind}, whose tower takes one size. Leave it out."
        )
