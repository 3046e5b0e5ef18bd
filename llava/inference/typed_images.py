"""Images by path or, where that is allowed, by http(s) address."""

from __future__ import annotations

from PIL import Image

from llava.common.bounded_http import FetchError, fetch
from llava.common.image_limits import check_prepared, open_image_file
from llava.common.image_opening import DEFAULT_OPENING, as_rgb
from llava.data.images import explained, shown_name
from llava.inference.places import is_address, is_missing, typed_place

IMAGE_TIMEOUT = 30.0
"""Seconds that an image behind an address may take, from the question for its host to its last byte."""
IMAGE_BYTES = 32 * 2**20
IMAGE_REDIRECTS = 3
NO_ADDRESSES, ANY_ADDRESSES = "none", "any"
ADDRESSES = (NO_ADDRESSES, "public", ANY_ADDRESSES)
"""Which addresses of images are fetched; see `open_image`."""


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
    with explained(f"Image {shown_name(place)}"):
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
            raise ValueError(f"Image {shown_name(place)} cannot be read: addresses are not fetched here; give a path.")
        content: bytes | str = _download(place, addresses)
    elif is_missing(place):
        raise ValueError(f"There is no image file {shown_name(place)}; give a path or an http(s) address.")
    else:
        content = place
    with explained(f"Image {shown_name(place)}"):
        image = open_image_file(content)
        image.load()
        return image


def _download(address: str, addresses: str) -> bytes:
    try:
        response = fetch(
            address,
            max_bytes=IMAGE_BYTES,
            seconds=IMAGE_TIMEOUT,
            redirects=IMAGE_REDIRECTS,
            public_only=addresses != ANY_ADDRESSES,
        )
    except FetchError as error:
        raise ValueError(f"Image {shown_name(address)} cannot be read: {error}") from error
    if response.status != 200:
        raise ValueError(
            f"Image {shown_name(address)} cannot be read: the server answered with status {response.status}, not 200; "
            "check the address."
        )
    return response.body
