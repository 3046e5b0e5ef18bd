"""A budget on a decoder of another depth than it was made for: scaled in proportion, and what comes out of it."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from llava.compression.config import CompressionConfig
from llava.cost.flops import average_visual_tokens, tokens_per_layer

logger = logging.getLogger(__name__)

_MANY = 10_000
"""Stands for the visual tokens that enter the decoder where their number depends on the image."""


def for_depth(compression: Any, num_layers: int, scale: bool) -> CompressionConfig:
    """A configuration in any form, scaled to a decoder where that is asked for; says in the log what comes out.

    Args:
        compression: object, preset's name, YAML file or mapping.
        num_layers: number of layers of the decoder.
        scale: whether to scale.

    Raises:
        ValueError: as `CompressionConfig.resolve`, and `scaled_to` where it scales.
    """
    made = CompressionConfig.resolve(compression)
    if not scale:
        return made
    scaled = made.scaled_to(num_layers)
    logger.warning("%s", what_scaling_gives(made, scaled, num_layers))
    return scaled


def add_scaling_flag(parser: argparse.ArgumentParser, of: str = "--compression") -> None:
    """The flag `--scale-to-depth` of a program.

    Args:
        parser: gets it.
        of: the flag that names what is scaled.
    """
    parser.add_argument(
        "--scale-to-depth",
        "--scale_to_depth",
        action="store_true",
        help=f"scale the layers of {of} from the depth it is made for to the model's, and say what comes out",
    )


def what_scaling_gives(made: CompressionConfig, scaled: CompressionConfig, num_layers: int) -> str:
    """A sentence: the layers before and after, and the visual tokens that a layer sees on average.

    Args:
        made: configuration as its file has it.
        scaled: `made.scaled_to(num_layers)`.
        num_layers: number of layers of the decoder.
    """
    name = (made.made_for and made.made_for.preset) or "This compression"
    if scaled == made or made.t2v is None or scaled.t2v is None:
        where = "drops nothing between layers" if made.t2v is None else "stays as it is"
        return f"--scale-to-depth: {name} {where} on {num_layers} decoder layers."
    assert made.made_for is not None and made.made_for.layers is not None
    depth, now = made.made_for.layers, list(scaled.t2v.layers)
    before, after = _average(made, depth), _average(scaled, num_layers)
    return (
        f"--scale-to-depth: {name}, made for {depth} decoder layers, drops after {now} of {num_layers} instead of "
        f"{list(made.t2v.layers)}; a layer sees {after} on average ({before} as made)."
    )


def as_it_is(made: CompressionConfig, num_layers: int) -> str:
    """A sentence about a preset of another depth: what it would do unscaled, and what scaled; "" where it fits.

    Args:
        made: configuration as its file has it.
        num_layers: number of layers of the decoder.
    """
    depth = made.made_for and made.made_for.layers
    if depth in (None, num_layers) or made.t2v is None:
        return ""
    parts = []
    try:
        parts.append(
            f"with its layers {list(made.t2v.layers)} a layer would see {_average(made, num_layers)} on average"
        )
    except ValueError as error:
        parts.append(str(error).rstrip("."))
    try:
        scaled = made.scaled_to(num_layers)
        assert scaled.t2v is not None
        parts.append(f"with --scale-to-depth {list(scaled.t2v.layers)} and {_average(scaled, num_layers)}")
    except ValueError as error:
        parts.append(str(error).rstrip("."))
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}."


def _average(compression: CompressionConfig, num_layers: int) -> str:
    """Visual tokens of an image (or crop, or frame) that a layer sees, mean over layers; a share where V2V is off."""
    v2v, counts = compression.v2v, None
    if v2v is not None and isinstance(v2v.dominant, int) and isinstance(v2v.contextual, int):
        counts = v2v.dominant + v2v.contextual
    mean = average_visual_tokens(tokens_per_layer(compression.t2v, counts or _MANY, num_layers))
    return f"{mean / _MANY:.1%} of the visual tokens" if counts is None else f"{mean:.2f} of {counts} visual tokens"
