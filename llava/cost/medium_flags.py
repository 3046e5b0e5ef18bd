"""The flags by which a program is told what image or video its costs are about."""

from __future__ import annotations

import argparse
import re

from llava.common.number_flags import count
from llava.common.shown import shown
from llava.cost.seen_media import Medium

_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")


def add_medium_flags(parser: argparse.ArgumentParser) -> None:
    """`--image-size` and `--frames`."""
    parser.add_argument(
        "--image-size",
        "--image_size",
        type=size,
        metavar="WIDTHxHEIGHT",
        help="of images or frames, for families to which it matters (default: 672x672 of LLaVA-NeXT, 896x896 of Qwen)",
    )
    parser.add_argument(
        "--frames", type=count(1), help="of a video, instead of an image (default: 8 of Video-LLaVA, else an image)"
    )


def size(text: str) -> tuple[int, int]:
    """Width and height, written such as 672x336; for argparse."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no size in pixels; write such as 672x336")
    return int(found[1]), int(found[2])


def asked_medium(options: argparse.Namespace, usual: Medium) -> Medium | None:
    """What the flags of `add_medium_flags` name; None where none is given.

    Args:
        options: options with `image_size` and `frames`.
        usual: sizes of the model's family, for what is not given.
    """
    if options.image_size is None and options.frames is None:
        return None
    width, height = options.image_size or (usual.width, usual.height)
    return Medium(width, height, usual.frames if options.frames is None else options.frames)
