"""What prepares images and videos where a model's own processor does, to see that it takes them."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

from llava.data.check.check_settings import CheckSettings

if TYPE_CHECKING:
    from llava.data.families.base import ModelInputs


def own_inputs(settings: CheckSettings, part: str) -> ModelInputs | None:
    """The inputs of a family with a processor of its own; None for other families, or without that part of it.

    Args:
        settings: settings of the check.
        part: `image_processor` or `video_processor`; the latter needs torchvision.

    Raises:
        ValueError: if the processor cannot be loaded.
    """
    if settings.counted_frames or settings.tokenizer is None:
        return None
    import torch

    from llava.data.check.conversations import load_inputs

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there is a process for each core
    inputs = load_inputs(settings.tokenizer)
    return None if getattr(inputs.processor, part, None) is None else inputs
