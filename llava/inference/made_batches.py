"""Batches of a given shape for any family, to measure with: noise for pictures, random tokens for words.

Models in LLaVA's own format need no tokenizer for it; those of other families are shown noise by their own processor.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.cost.seen_media import Medium
from llava.data.families.base import ModelInputs, Sample
from llava.data.frames import Frames
from llava.inference.batches import to_device
from llava.model.random_weights import random_batch


def made_batch(
    model: Any,
    inputs: ModelInputs | None,
    rows: int,
    text_tokens: int,
    images: int,
    medium: Medium | None = None,
    labels: bool = False,
) -> dict[str, Any]:
    """Rows of equal shape, so that nothing is padded; the same numbers every time.

    Args:
        model: model of any family.
        inputs: what makes its inputs; needed by models that are not in LLaVA's own format.
        rows: number of rows.
        text_tokens: number of text tokens of a row, beside its images.
        images: number of images (or videos) of a row.
        medium: size of each, and frames of a video; None for what is usual.
        labels: whether the last fifth of the text of a row is its answer.

    Returns:
        arguments of the model's forward, on its device.

    Raises:
        ValueError: if the model's chat template alone takes more text, or its processor cannot be made.
    """
    if hasattr(model, "named_towers"):
        return random_batch(model, rows, text_tokens, images, labels, medium)
    if inputs is None:
        raise ValueError(
            f"A {model.config.model_type} is measured with its own processor; give a folder that holds it."
        )
    sample = _with_words(_shown(inputs, images, medium or Medium(896, 896)), inputs, text_tokens)
    if labels:
        sample["labels"] = sample["input_ids"].clone()
        sample["labels"][: -max(1, text_tokens // 5)] = IGNORE_INDEX
    batch: dict[str, Any] = to_device(inputs.batch([sample] * rows), model.device)
    if not labels:
        batch.pop("labels", None)
    # The dtype of pixels is the model's, as `forward` itself would make it.
    return {
        name: value.to(model.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }


def realised(inputs: ModelInputs | None, medium: Medium | None) -> Medium | None:
    """What a model's processor makes of a medium, whose size it may bring within limits.

    Args:
        inputs: as in `made_batch`.
        medium: None for what is usual.
    """
    if inputs is None or medium is None:
        return medium
    (shown,) = _shown(inputs, 1, medium)["images"]
    return as_prepared(shown, medium, inputs.config)


def as_prepared(shown: Any, medium: Medium, config: Any) -> Medium:
    """A medium at the size to which a processor with a grid of patches has brought it; as it is for other families.

    Args:
        shown: medium as the family prepared it.
        medium: the same before that.
        config: configuration of the model.
    """
    made = getattr(shown, "inputs", {})
    grid = next((made[name] for name in ("image_grid_thw", "video_grid_thw") if name in made), None)
    if grid is None:
        return medium
    settings = config.vision_config
    ((time, rows, columns),) = grid.tolist()
    side = settings.patch_size
    return Medium(columns * side, rows * side, time * settings.temporal_patch_size if medium.frames else 0)


def _shown(inputs: ModelInputs, images: int, medium: Medium) -> Sample:
    """A question about noise."""
    noise = torch.Generator().manual_seed(0)

    def picture() -> Image.Image:
        pixels = torch.randint(0, 256, (medium.height, medium.width, 3), generator=noise, dtype=torch.uint8)
        return Image.fromarray(pixels.numpy())

    media: list[Any] = []
    for _ in range(images):
        if medium.frames:
            frames = tuple(picture() for _ in range(medium.frames))
            media += inputs.video(Frames(frames, tuple(range(medium.frames)), medium.frames, 1.0), "The video")
        else:
            media.append(inputs.image(picture(), "The image"))
    return inputs.prompt([inputs.question("?", media)], media)


def _with_words(sample: Sample, inputs: ModelInputs, text_tokens: int) -> Sample:
    """The sample with words behind its images, so that it has that many text tokens."""
    ids: Tensor = sample["input_ids"]
    held = len(ids) - inputs.visual_tokens(sample, None)
    if held > text_tokens:
        raise ValueError(
            f"--text-tokens is {text_tokens}, but the model's chat template around its images takes {held}; give that "
            "or more."
        )
    place = len(ids) - 1
    words = torch.randint(3, 100, (text_tokens - held,), generator=torch.Generator().manual_seed(0))
    rows = {"input_ids": words}
    for name in ("labels", "query_mask"):
        rows[name] = sample[name][place].expand(len(words))
    longer = {name: torch.cat([sample[name][:place], row, sample[name][place:]]) for name, row in rows.items()}
    return sample | longer
