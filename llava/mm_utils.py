"""Small functions around images and prompts that LLaVA users import by name."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, Literal, overload

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.common import anyres
from llava.common.clip_pixels import pixel_values
from llava.common.image_limits import TOWER_SIDE, ImageLimitError, check_prepared, is_lack_of_memory, open_image_file
from llava.common.image_opening import as_rgb, opening_of
from llava.common.image_padding import scaled_square
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX

ASPECT_RATIOS = ("square", "pad")
"""Aspect ratios of images that are not cut; `llava.common.anyres.is_anyres` knows the others."""
LARGE_SIDE = 5000
"""Pixels; a larger square is not made whole when it is padded, see `llava.common.image_padding`."""


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Open an image file that travels as base64 text, within the limits of `llava.common.image_limits`.

    Raises:
        ValueError: if the text is no base64, or the content no image of an accepted format and size; Pillow's errors
            where it is damaged.
    """
    return open_image_file(base64.b64decode(image))


def expand2square(image: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """Pad the shorter side equally on both ends until the image is square."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background_color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def select_best_resolution(
    original_size: Sequence[int], possible_resolutions: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """LLaVA's name of `llava.common.anyres.best_canvas`; all sizes are (width, height)."""
    return anyres.best_canvas(original_size, [(width, height) for width, height in possible_resolutions])


def resize_and_pad_image(image: Image.Image, target_resolution: Sequence[int]) -> Image.Image:
    """LLaVA's name of `llava.common.anyres.on_canvas`."""
    width, height = target_resolution
    return anyres.on_canvas(image, (width, height))


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """LLaVA's name of `llava.common.anyres.cut`."""
    return anyres.cut(image, patch_size)


def get_anyres_image_grid_shape(image_size: Sequence[int], grid_pinpoints: Any, patch_size: int) -> tuple[int, int]:
    """LLaVA's name of `llava.common.anyres.grid_of`: crops (across, down) of an image of (width, height)."""
    return anyres.grid_of(image_size, grid_pinpoints, patch_size)


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: Any) -> torch.Tensor:
    """Pixels [1 + crops, 3, S, S] of an image: the whole squeezed to one crop, then its crops row by row.

    Args:
        image: an RGB image.
        processor: a CLIP image processor.
        grid_pinpoints: as in `llava.common.anyres.canvases_of`.

    Raises:
        ValueError: if there is no canvas to choose from.
        ImageLimitError: as in `preprocess_image`.
    """
    side = _side(processor)
    check_prepared(image.size, "anyres", side)
    with _within_memory(image.size):
        crops = anyres.crops_of(image, grid_pinpoints, side)
        return pixel_values(crops, processor)


def aspect_ratio_of(config: Any) -> str | None:
    """How a model's images are shaped, see `preprocess_image`."""
    ratio: str | None = getattr(config, "image_aspect_ratio", None)
    return ratio


def preprocess_image(
    image: Image.Image, image_processor: Any, aspect_ratio: str | None, grid_pinpoints: Any = None
) -> torch.Tensor:
    """Pixels of one image as the vision tower wants them.

    Args:
        image: an RGB image.
        image_processor: a CLIP image processor.
        aspect_ratio: `pad` makes the image square with the processor's mean colour first; `square` or None
            leaves shaping to the processor (resize the shorter side, crop the centre); `anyres` and `anyres_max_N` cut
            it into crops, see `llava.common.anyres`.
        grid_pinpoints: canvases for crops.

    Returns:
        Tensor [3, H, W]; of crops [1 + crops, 3, S, S].

    Raises:
        ValueError: for another aspect ratio, or without canvases for crops.
        ImageLimitError: if that makes more pixels than are accepted, see `llava.common.image_limits`, or takes more
            memory than there is.
    """
    if anyres.is_anyres(aspect_ratio):
        return process_anyres_image(image, image_processor, grid_pinpoints)
    if aspect_ratio not in (*ASPECT_RATIOS, None):
        raise ValueError(
            f"image_aspect_ratio is {aspect_ratio!r}; accepted are {', '.join(ASPECT_RATIOS)}, anyres and anyres_max_N "
            "with a number N."
        )
    check_prepared(image.size, aspect_ratio, _side(image_processor))
    with _within_memory(image.size):
        if aspect_ratio == "pad":
            image = _padded(image, tuple(int(channel * 255) for channel in image_processor.image_mean), image_processor)
        return pixel_values([image], image_processor)[0]


@contextmanager
def _within_memory(size: tuple[int, int]) -> Iterator[None]:
    """Say in words that there is too little memory for an image of a size."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_lack_of_memory(error):
            width, height = size
            raise ImageLimitError(f"preparing {width} x {height} pixels takes more memory than there is") from error
        raise


def _padded(image: Image.Image, color: tuple[int, ...], image_processor: Any) -> Image.Image:
    """A square; scaled already where it is large and the processor would do with Pillow what is done here."""
    size = image_processor.size
    gives_square = bool(size.get("shortest_edge")) or size.get("height") == size.get("width")
    is_pillows = isinstance(image_processor, CLIPImageProcessorPil) and image_processor.do_resize
    if max(image.size) <= LARGE_SIDE or not (is_pillows and gives_square):
        return expand2square(image, color)
    return scaled_square(image, color, _side(image_processor), image_processor.resample)


def _side(image_processor: Any) -> int:
    """Pixels that the shorter side of an image is scaled to."""
    size = image_processor.size
    return int(size.get("shortest_edge") or size.get("height") or TOWER_SIDE)


def process_images(
    images: Sequence[Image.Image], image_processor: Any, model_cfg: Any
) -> torch.Tensor | list[torch.Tensor]:
    """Pixels of several images, opened as the model was trained and shaped as `model_cfg.image_aspect_ratio` says.

    Args:
        images: as Pillow opens them, in any mode, or as RGB; see `llava.common.image_opening`.
        image_processor: a CLIP image processor.
        model_cfg: configuration of the model.

    Returns:
        Tensor [M, 3, H, W] when all shapes agree (they do for `pad` and `square`), otherwise a list. Of images that are
        cut [M, 1 + crops, 3, S, S], or a list; the model then also needs their `image_sizes`.

    Raises:
        ImageLimitError: as in `preprocess_image`.
    """
    shaping = aspect_ratio_of(model_cfg), getattr(model_cfg, "image_grid_pinpoints", None)
    opening = opening_of(model_cfg)
    try:
        pixels = [preprocess_image(as_rgb(image, opening), image_processor, *shaping) for image in images]
    except ImageLimitError as error:
        raise ImageLimitError(f"An image is too large: {error}.") from error
    same_shape = len({tuple(tensor.shape) for tensor in pixels}) == 1
    return torch.stack(pixels) if same_shape else pixels


def image_sizes(images: Sequence[Image.Image], model_cfg: Any) -> list[tuple[int, int]]:
    """(width, height) of images as `process_images` sees them: turned upright where the model was trained so.

    LLaVA's programs write `[image.size for image in images]`, which is the same for images without a rotation mark.
    Arguments as in `process_images`.
    """
    opening = opening_of(model_cfg)
    return [as_rgb(image, opening).size for image in images]


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text: its BOS id, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("").input_ids[:1] == [bos] else []


@overload
def tokenizer_image_token(
    prompt: str, tokenizer: PreTrainedTokenizerBase, image_token_index: int = ..., return_tensors: None = None
) -> list[int]: ...


@overload
def tokenizer_image_token(
    prompt: str, tokenizer: PreTrainedTokenizerBase, image_token_index: int = ..., *, return_tensors: Literal["pt"]
) -> torch.Tensor: ...


def tokenizer_image_token(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | torch.Tensor:
    """Token ids of a prompt in which every `<image>` becomes one `image_token_index`.

    The pieces between images are tokenised one by one, as LLaVA does; BOS stands once, at the front. One string does
    not tell a template's marks from what somebody wrote: `</s>` is the end token wherever it stands. Where text comes
    from outside, `llava.data.tokenization.encode_prompt` takes the turns apart and keeps what was said as text.

    Raises:
        ValueError: if `return_tensors` is neither None nor "pt".
    """
    ids = leading_bos(tokenizer)
    for number, chunk in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN)):
        ids += [image_token_index] * (number > 0) + tokenizer(chunk, add_special_tokens=False).input_ids
    if return_tensors is None:
        return ids
    if return_tensors != "pt":
        raise ValueError(f"return_tensors is {return_tensors!r}; accepted are None and 'pt'.")
    return torch.tensor(ids, dtype=torch.long)


def get_model_name_from_path(model_path: str) -> str:
    """Last component of a path; `run_checkpoint-9` for `.../run/checkpoint-9`."""
    parts = PurePath(model_path.strip("/")).parts
    if not parts:
        raise ValueError(f"model_path is {model_path!r}; it must name a model folder.")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


def model_name_of(model_path: str) -> str:
    """LLaVA's name of a model, the same for every way to write the path of a folder: also for `.` and `..`.

    Raises:
        ValueError: if it is no path or has no name.
    """
    if not isinstance(model_path, str | os.PathLike):
        raise ValueError(f"model_path is {model_path!r}; it must name a model folder.")
    folder = os.path.expanduser(os.fspath(model_path))
    return get_model_name_from_path(os.path.abspath(folder) if os.path.isdir(folder) else os.fspath(model_path))


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops a row once one of the keywords has been generated in it.

    Args:
        keywords: strings that end an answer.
        tokenizer: tokenizer of the model.
        input_ids: the prompt [B, T]; ignored where `generate` returns new ids only.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.prompt = input_ids
        spelled = [tokenizer(keyword, add_special_tokens=False).input_ids for keyword in self.keywords]
        self.keyword_ids = [ids for ids in spelled if ids]
        letters = [len(keyword.encode()) for keyword in self.keywords]  # a model may spell one byte by byte
        self.window = max([*letters, *map(len, self.keyword_ids)], default=0) + 1

    def __call__(self, output_ids: torch.LongTensor, scores: torch.FloatTensor | None, **kwargs: Any) -> torch.Tensor:
        """Which rows of `output_ids` [B, T] are finished, as a bool tensor [B]."""
        rows = self._generated(output_ids)[:, -self.window :].tolist()
        stops = [self._ends_with_keyword(row) for row in rows]
        return torch.tensor(stops, dtype=torch.bool, device=output_ids.device)

    def _generated(self, output_ids: torch.Tensor) -> torch.Tensor:
        length = self.prompt.shape[1]
        same_rows = self.prompt.shape[0] == output_ids.shape[0]
        starts_with_prompt = (
            same_rows
            and output_ids.shape[1] >= length
            and bool((output_ids[:, :length] == self.prompt.to(output_ids.device)).all())
        )
        return output_ids[:, length:] if starts_with_prompt else output_ids

    def _ends_with_keyword(self, row: list[int]) -> bool:
        if any(row[-len(ids) :] == ids for ids in self.keyword_ids):
            return True
        text = self.tokenizer.decode(row, skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)
