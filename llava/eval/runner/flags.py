"""Flags that programs of the evaluation share: the budget of visual tokens, and how answers are generated."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.common.number_flags import (
    MOST_PROCESSES,
    SEED,
    Numbers,
    budget_number,
    count,
    not_negative,
    require_at_least,
    require_number,
    share,
)
from llava.common.presets import family_of, presets
from llava.compression.config import CompressionConfig
from llava.cost.scaling import add_scaling_flag
from llava.inference.loading_flags import check_device
from llava.model.budget_flags import BudgetFlags

DTYPES = ("float32", "bfloat16", "float16")
_NAMES = ("compression", "dominant", "contextual", "cluster_width", "layer_list", "image_token_ratio_list")
_SWITCHES = ("scale_to_depth", "compute_salient_tokens")
COMPRESSION_DEFAULTS: dict[str, Any] = dict.fromkeys(_NAMES) | dict.fromkeys(_SWITCHES, False)
"""What the flags of `add_compression_flags` stand for where they are not given."""


def add_compression_flags(parser: argparse.ArgumentParser) -> None:
    """`--compression`, and the published flags that override single values of it."""
    parser.add_argument("--compression", help="preset or YAML file; by default what the model was trained with")
    add_scaling_flag(parser)
    kept, merged = "V2V: tokens kept as they are, CLS included", "V2V: tokens merged from the rest"
    parser.add_argument("--dominant", "--dominant_num", type=budget_number, help=f"{kept}, or a share of all")
    parser.add_argument("--contextual", "--context_num", type=budget_number, help=f"{merged}, or a share of all")
    parser.add_argument("--cluster_width", "--cluster-width", type=int, help="V2V: patches pooled for each of them")
    parser.add_argument("--layer_list", "--layer-list", help="T2V: '[16,24]', drops after so many layers")
    parser.add_argument("--image_token_ratio_list", "--image-token-ratio-list", help="T2V: '[0.5,0.0]', kept shares")
    parser.add_argument(
        "--compute_salient_tokens",
        "--compute-salient-tokens",
        action="store_true",
        help="T2V: salient words of the question vote, too",
    )
    parser.set_defaults(**COMPRESSION_DEFAULTS)


def budget(options: argparse.Namespace, present: CompressionConfig, num_layers: int | None = None) -> CompressionConfig:
    """The compression that the flags ask for: single values over `--compression` or the model's own.

    Args:
        options: parsed flags with the names of `COMPRESSION_DEFAULTS`.
        present: the model's own.
        num_layers: number of layers of the model's decoder.

    Raises:
        ValueError: if a value is out of range, or a stage is asked for only in part.
    """
    flags = BudgetFlags(
        compression=options.compression,
        dominant=options.dominant,
        contextual=options.contextual,
        cluster_width=options.cluster_width,
        layers=_text(options.layer_list),
        keep=_text(options.image_token_ratio_list),
        salient=True if options.compute_salient_tokens else None,
        scale_to_depth=options.scale_to_depth,
    )
    return flags.over(present, num_layers)


def compression_name(options: argparse.Namespace, chosen: CompressionConfig, model: Any = None) -> str:
    """What to call a budget: a preset's name, a file's, `own` for the model's, `flags-...` for one made of flags.

    Args:
        options: as in `budget`.
        chosen: what `budget` made of them.
        model: configuration of the model, for presets of its family alone to lend it a name; None takes any.

    A preset that was scaled has the depth behind its name: `duet-192-40-layers`.
    """
    asked = options.compression
    if asked is not None:
        stem = Path(asked).stem if str(asked).endswith((".yaml", ".yml")) else str(asked)
        if CompressionConfig.resolve(asked) == chosen:
            return stem
        if options.scale_to_depth and chosen.made_for is not None:
            return f"{stem}-{chosen.made_for.layers}-layers"
    equal = [name for name in presets() if CompressionConfig.from_preset(name) == chosen and _fits(name, model)]
    if equal:
        return equal[0]
    if all(getattr(options, name) == default for name, default in COMPRESSION_DEFAULTS.items()):
        return "own"
    return f"flags-{hashlib.sha256(json.dumps(chosen.to_dict()).encode()).hexdigest()[:8]}"


def _fits(preset: str, model: Any) -> bool:
    made_for = CompressionConfig.from_preset(preset).made_for
    return model is None or made_for is None or family_of(model) in made_for.families


def add_generation_flags(parser: argparse.ArgumentParser, temperature: float, max_new_tokens: int | None) -> None:
    """LLaVA's flags of generation.

    Args:
        parser: gets them.
        temperature: where the flag is not given.
        max_new_tokens: where the flag is not given; None leaves it to the benchmark.
    """
    longest = "as the benchmark asks" if max_new_tokens is None else max_new_tokens
    parser.add_argument(
        "--temperature", type=float, default=temperature, help=f"0 takes the likeliest token (default: {temperature:g})"
    )
    parser.add_argument("--top_p", "--top-p", type=float, help="sample from the likeliest tokens of this total share")
    parser.add_argument("--num_beams", "--num-beams", type=int, default=1, help="beams of a beam search (default: 1)")
    parser.add_argument(
        "--max_new_tokens",
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        help=f"longest answer (default: {longest})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling (default: 0)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: float16 on a GPU, float32 on a CPU)")


def add_batch_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """`--batch-size` and `--loader-workers`: questions answered together, and processes that read their images."""
    parser.add_argument(
        "--batch-size",
        "--batch_size",
        type=int,
        default=batch_size,
        help=f"questions answered together (default: {batch_size})",
    )
    parser.add_argument(
        "--loader-workers",
        "--loader_workers",
        type=int,
        help="processes of each device that read images ahead (default: 4 with a GPU, 0 on a CPU)",
    )


RANGES: Mapping[str, Numbers] = {
    "dominant": count(),
    "contextual": count(0),
    "cluster_width": count(),
    "temperature": not_negative(1e4),
    "top_p": share(above=True),
    "num_beams": count(),
    "max_new_tokens": count(),
    "seed": SEED,
    "batch_size": count(),
    "loader_workers": count(0, MOST_PROCESSES),
    "num_gpus": count(),
    "num_frames": count(),
    "limit": count(),
    "num_chunks": count(),
    "chunk_idx": count(0),
}
"""What the numeric flags accept of the programs that ask a model questions, by their names in the options."""


def check_options(options: argparse.Namespace) -> None:
    """Check the numbers and the device of a command line, as far as they were given.

    Raises:
        ValueError: for the first that is not accepted; names the flag, its value and the range.
    """
    for name, accepted in RANGES.items():
        value = getattr(options, name, None)
        flag = name.replace("_", "-")
        if accepted.whole and accepted.smallest == 1:
            require_at_least(flag, value, 1)
        require_number(flag, value, accepted)
    check_device(options.device)


def _text(value: Any) -> str | None:
    """A list as it stands on a command line; the published evaluation code passes lists, too."""
    return None if value is None else str(list(value)) if isinstance(value, list | tuple) else str(value)
