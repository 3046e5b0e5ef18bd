"""What programs that ask a model share: templates by name, images by path or address, options of sampling."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from PIL import Image

from llava.common.bounded_http import FetchError, fetch
from llava.common.image_limits import check_prepared, open_image_file
from llava.common.image_opening import DEFAULT_OPENING, OPENINGS, as_rgb
from llava.common.path_flags import MODEL
from llava.constants import DEFAULT_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN
from llava.conversation import get_template
from llava.data.images import explained
from llava.data.records import wrap_image_marks
from llava.inference.places import is_address, is_there, typed_place

DEFAULT_CONV_MODE = "v1"
IMAGE_TIMEOUT = 30.0
"""Seconds that an image behind an address may take, from the question for its host to its last byte."""
IMAGE_BYTES = 32 * 2**20
IMAGE_REDIRECTS = 3
NO_ADDRESSES, ANY_ADDRESSES = "none", "any"
ADDRESSES = (NO_ADDRESSES, "public", ANY_ADDRESSES)
"""Which addresses of images are fetched; see `open_image`."""

# A part of a model's name, and the template that LLaVA speaks such models in; the first that fits decides.
_TEMPLATES_BY_NAME = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
    ("v0", "llava_v0"),
)


def conv_mode_of(model_name: str) -> str:
    """The conversation template that a model's name asks for, by LLaVA's rules, and v1 where none fits.

    For models whose `config.json` records none; see `llava.inference.template`.
    """
    name = model_name.lower()
    return next((template for part, template in _TEMPLATES_BY_NAME if part in name), DEFAULT_CONV_MODE)


def stop_string(conv_mode: str) -> str:
    """What ends an answer in a template."""
    return get_template(conv_mode).end_mark


def read_image(
    place: str, opening: str = DEFAULT_OPENING, addresses: str = NO_ADDRESSES, aspect_ratio: str | None = None
) -> Image.Image:
    """An image by path or, where that is allowed, by http(s) address, as RGB.

    Args:
        place: the path or address.
        opening: `upright` or `llava`, see `llava.common.image_opening`.
        addresses: as in `open_image`.
        aspect_ratio: that it will be prepared with, for images to be refused that become too large; None for `square`.

    Raises:
        ValueError: if there is none or it cannot be read; names it.
    """
    return as_seen(open_image(place, addresses), place, opening, aspect_ratio)


def as_seen(image: Image.Image, place: str, opening: str, aspect_ratio: str | None) -> Image.Image:
    """An image of `open_image` as RGB; arguments and errors as in `read_image`."""
    with explained(f"Image {place!r}"):
        check_prepared(image.size, aspect_ratio)
        return as_rgb(image, opening)


def open_image(place: str, addresses: str = NO_ADDRESSES) -> Image.Image:
    """An image by path or address as Pillow opens it, decoded; `as_rgb` makes of it what a model sees.

    Args:
        place: the path or address, also as `typed_place` takes it.
        addresses: which http(s) addresses are fetched: `none`; `public` ones, for places that others named; `any`,
            private hosts among them, for what users type themselves. Redirects lead to public hosts or stay where they
            are; see `llava.common.bounded_http`.

    Raises:
        ValueError: if there is none or it cannot be read; names it.
    """
    if addresses not in ADDRESSES:
        raise ValueError(f"addresses is {addresses!r}; accepted are {', '.join(ADDRESSES)}.")
    place = typed_place(place)
    if is_address(place):
        if addresses == NO_ADDRESSES:
            raise ValueError(f"Image {place!r} cannot be read: addresses are not fetched here; give a path.")
        content: bytes | str = _download(place, addresses)
    elif is_there(place):
        content = place
    else:
        raise ValueError(f"There is no image file {place!r}; give a path or an http(s) address.")
    with explained(f"Image {place!r}"):
        image = open_image_file(content)
        image.load()
        return image


def _download(address: str, addresses: str) -> bytes:
    try:
        response = fetch(
            address, max_bytes=IMAGE_BYTES, seconds=IMAGE_TIMEOUT, redirects=IMAGE_REDIRECTS,
            public_only=addresses != ANY_ADDRESSES,
        )  # fmt: skip
    except FetchError as error:
        raise ValueError(f"Image {address!r} cannot be read: {error}") from error
    if response.status != 200:
        raise ValueError(
            f"Image {address!r} cannot be read: the server answered with status {response.status}, not 200; check "
            "the address."
        )
    return response.body


def place_images(question: str, count: int, config: Any, conv_mode: str) -> str:
    """A question with a mark for each of its images: where it says `<image>`, else in front, a line each.

    Args:
        question: text, with as many `<image>` as images or none; `\\<image>` is the word itself.
        count: images.
        config: of the model; its `mm_use_im_start_end` surrounds marks.
        conv_mode: key of `conv_templates`; some surround marks too.

    Raises:
        ValueError: if the question holds another number of marks.
    """
    question = question.replace(WRITTEN_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN)
    marks = question.count(DEFAULT_IMAGE_TOKEN)
    if marks not in (0, count):
        raise ValueError(
            f"The question holds {marks} {DEFAULT_IMAGE_TOKEN}, but {count} images were given; write one for each, or "
            f"none to have them in front. {WRITTEN_IMAGE_TOKEN} is the word itself."
        )
    if marks == 0:
        question = f"{DEFAULT_IMAGE_TOKEN}\n" * count + question
    tagged = "mmtag" in get_template(conv_mode).version
    return wrap_image_marks(question, bool(getattr(config, "mm_use_im_start_end", False)), tagged)


def sampling(
    temperature: float | None = None,
    top_p: float | None = None,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
) -> dict[str, Any]:
    """Options of `generate` from LLaVA's: a temperature of 0 takes the likeliest token; None leaves the model's own.

    Raises:
        ValueError: if a value is out of range.
    """
    if temperature is not None and not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be 0 (the likeliest token) or more, and finite.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1.")
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more.")
    options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    if temperature is not None:
        options["do_sample"] = temperature > 0
        # The neutral values override those that a checkpoint's generation_config.json may hold.
        options |= {"temperature": temperature, "top_p": top_p} if temperature > 0 else {"temperature": 1.0, "top_p": 1}
    return {name: value for name, value in options.items() if value is not None}


def check_device(device: str) -> None:
    """Say what is wrong with the name of a device.

    Raises:
        ValueError: if torch cannot use it.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device is {device!r}, which this torch cannot use: {reason}") from error


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every program that opens a model."""
    parser.add_argument("--model-path", "--model_path", type=MODEL, required=True, help="checkpoint folder")
    parser.add_argument(
        "--model-base", "--model_base", type=MODEL, help="language model that a projector or LoRA folder belongs to"
    )
    parser.add_argument(
        "--image-opening", "--image_opening", choices=OPENINGS,
        help="`upright` applies a photo's rotation mark, `llava` does not; by default as the model was trained",
    )  # fmt: skip
    parser.add_argument("--device", help="cuda (also ROCm) or cpu; by default a GPU where there is one")
    parser.add_argument("--load-8bit", "--load_8bit", action="store_true", help="language model in 8 bits")
    parser.add_argument("--load-4bit", "--load_4bit", action="store_true", help="language model in 4 bits")


def best_device(asked: str | None) -> str:
    """The device that was asked for, else a GPU where there is one."""
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")
