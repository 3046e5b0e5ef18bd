"""How much time a budget saves of what the arithmetic allows, and where the rest goes: `python -m llava.bench`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llava.bench import attribution, results
from llava.bench.cases import BASELINE, CHECKPOINTING, Case, Setting
from llava.bench.clock import figure_of, in_turn
from llava.bench.inputs import TEXTS, text_lengths, text_of
from llava.bench.modes import MODES, left_out
from llava.bench.peers import BUDGETS, PEERS
from llava.bench.picture import check_picture, draw
from llava.common.json_files import write_json
from llava.common.number_flags import count
from llava.common.outputs import require_apart, require_folder
from llava.common.path_flags import FILE_TO_WRITE
from llava.common.presets import family_of
from llava.common.program import as_program
from llava.compression.config import CompressionConfig
from llava.cost.hardware import device_peak
from llava.cost.machine import measured_on, usable_cores
from llava.cost.medium_flags import add_medium_flags, asked_medium
from llava.cost.seen_media import usual_medium
from llava.inference.loading_flags import best_device, check_device
from llava.model.llava_config import LlavaConfig
from llava.model.packing import PACKING
from llava.model.parts import bytes_of
from llava.model.random_weights import SHAPES, random_config, random_model

_OF_FAMILIES = {
    "llava-1.5": ("duet-192", "duet-128", "duet-64"),
    "llava-next": ("next-640", "next-320", "next-160"),
    "video-llava": ("video-960", "video-136"),
}
_USUAL = {"tiny": (2, 20), "medium": (4, 64)}
_USUAL_ELSEWHERE = (16, 200)
"""Rows of a batch and text tokens of a row, by shape; 200 is what docs/performance.md computes with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would say when it starts and stops
    try:
        _check(options)
        check_device(options.device)
        device = torch.device(best_device(options.device))
        if device.type == "cpu":
            torch.set_num_threads(options.threads or usable_cores())
        torch.manual_seed(0)
        dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
        _require_own_format(options.shape)
        model = random_model(options.shape, device, dtype)
        document = _measure(options, model, device)
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"bench: the model itself does not fit: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 1 if any("error" in row for row in document["rows"]) else 0


def _measure(options: argparse.Namespace, model: Any, device: torch.device) -> dict[str, Any]:
    """Time every mode with every text, print it, and return all of it; `--json` holds what is measured so far."""
    clock = figure_of(device)
    document: dict[str, Any] = {
        "machine": measured_on(device),
        "shape": options.shape,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "clock": clock,
        "peak_flops": device_peak(device, model.dtype),
        "rows": [],
    }
    print(f"{document['machine']}\n{options.shape}, {document['dtype']}; the figure is {_in_words(clock)}")
    pictures: dict[str, dict[str, attribution.Attribution]] = {}
    for mode in options.mode:
        for text in [text_of(options.lengths)] if options.lengths else options.text:
            setting = _setting(options, model, text)
            cases = list(MODES[mode](setting))
            measured = in_turn(cases, options.repeats, device)
            found = results.rows(mode, text, setting.lengths, cases, measured, clock)
            parts = {} if options.no_attribution else _attribute(cases, found, model, device)
            print(f"\n{mode}, {text} text: {len(setting.lengths)} rows of {_listed(setting.lengths)} text tokens")
            if unrun := left_out(mode, setting):
                print(unrun)
            print(results.table(mode, found))
            if parts:
                print(attribution.table(parts))
                pictures[f"{mode}, {text} text"] = parts
            document["rows"] += found
            if options.json:
                write_json(options.json, document, indent=1)
    if options.picture and pictures:
        draw(pictures, options.picture)
    return document


def _attribute(
    cases: Sequence[Case], found: Sequence[dict[str, Any]], model: Any, device: torch.device
) -> dict[str, attribution.Attribution]:
    """Profile each case of this project that could be timed, and add what comes out to its row."""
    weights = bytes_of(model.parameters())
    parts = {}
    for case, row in zip(cases, found, strict=True):
        if "error" in row:
            continue
        one = attribution.attributed(case, device)
        if one.peak is not None:
            row["peak_mib"] = round((weights + one.peak) / results.MIB, 1)
        if not case.peer:
            one = attribution.matched(one, row["seconds"])
            row |= one.to_json()
            parts[results.label(row)] = one
    return parts


def _setting(options: argparse.Namespace, model: Any, text: str) -> Setting:
    """What the flags ask, fitted to the model."""
    usual = _USUAL.get(options.shape, _USUAL_ELSEWHERE)
    lengths = options.lengths or text_lengths(text, options.batch_size or usual[0], options.text_tokens or usual[1])
    family = family_of(model.config.to_dict())
    names = [name.strip() for given in options.compression or () for name in given.split(",") if name.strip()]
    names = names or list(_OF_FAMILIES.get(family, ()))
    names += BUDGETS if "budgets" in options.peers else ()
    compressions: dict[str, CompressionConfig] = {}
    for name in dict.fromkeys([BASELINE, *names]):
        compressions[name] = model.checked(_scaled(CompressionConfig.resolve(name), model.config.num_hidden_layers))
    return Setting(
        model,
        compressions,
        tuple(lengths),
        packings=tuple(dict.fromkeys(options.packing)),
        checkpointing=tuple(dict.fromkeys(options.checkpointing)),
        peers=tuple(peer for peer in options.peers if peer in PEERS),
        new_tokens=options.new_tokens,
        medium=asked_medium(options, usual_medium(model.config.to_dict())),
        train_flags=options.train_flags,
    )


def _scaled(config: CompressionConfig, layers: int) -> CompressionConfig:
    """A budget with its drops in proportion to the depth, where it says for which depth it is made."""
    made_for = config.made_for
    return config.scaled_to(layers) if made_for is not None and made_for.layers is not None else config


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError for flags that do not fit each other, before weights are made."""
    require_folder("--json", options.json)
    outputs: dict[str, Path | None] = {"--json": options.json, "--picture": options.picture}
    require_apart({flag: path for flag, path in outputs.items() if path}, [options.shape, *(options.compression or [])])
    if options.picture:
        check_picture(options.picture)
        if options.no_attribution:
            raise ValueError("--picture draws where the time goes; leave out --no-attribution.")
    if options.lengths and (len(options.text) > 1 or options.batch_size or options.text_tokens):
        raise ValueError(
            "--lengths says how many rows there are and how long, so give one --text, and neither --batch-size nor "
            "--text-tokens."
        )


def _require_own_format(shape: str) -> None:
    """Raise ValueError for a folder of a model that is not in LLaVA's own format, whose batches are not made here."""
    config = random_config(shape)
    if not isinstance(config, LlavaConfig):
        raise ValueError(
            f"--shape is {shape!r}, which holds a {config.model_type}; here models in LLaVA's own format are timed. "
            f"python -m llava.eval.cost --model-path {shape} times every family."
        )


def _in_words(clock: str) -> str:
    return "the clock on the wall" if clock == "wall" else "processor seconds of the one thread"


def _listed(lengths: Sequence[int]) -> str:
    return str(lengths[0]) if len(set(lengths)) == 1 else ", ".join(map(str, lengths))


def _lengths(text: str) -> tuple[int, ...]:
    """Whole numbers from 1, joined by commas; for argparse."""
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 10**6 for part in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of lengths; write such as 20,40,64,132")
    return tuple(map(int, numbers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.bench",
        description="Times budgets of visual tokens in turn in one process, beside the FLOPs (decoding: bytes) that "
        "they leave, with random weights. What others are compared with is `none` on padded rows. Nothing is "
        "downloaded.",
    )
    parser.add_argument("--shape", required=True, help=f"{', '.join(SHAPES)}, or the folder of a LLaVA")
    for flag, choices, default, text in (
        ("--mode", tuple(MODES), ["prefill"], "what is timed"),
        ("--text", TEXTS, ["equal"], "rows of one length, or of lengths as in instruction data"),
        ("--packing", PACKING, ["auto"], "rows end to end instead of padded, as in training"),
        ("--checkpointing", CHECKPOINTING, ["off"], "of training: activations are computed again"),
        ("--peers", (*PEERS, "budgets"), [], "other programs on the same weights; budgets: those of other methods"),
    ):
        parser.add_argument(
            flag, nargs="+", choices=choices, default=default, help=f"{text} (default: {' '.join(default) or 'none'})"
        )
    parser.add_argument(
        "--compression", nargs="+", help="presets or YAML files, joined by commas, beside none (default: the family's)"
    )
    for flag, number, preset, text in (
        ("--batch-size", count(), None, "rows of a batch"),
        ("--text-tokens", count(), None, "text tokens of a row, on average"),
        ("--new-tokens", count(), 16, "tokens that decoding makes"),
        ("--repeats", count(), 5, "rounds, after one to warm up"),
        ("--threads", count(), None, "of a CPU (default: its cores); with 1 processor seconds count"),
    ):
        names = (flag, "--" + flag.removeprefix("--").replace("-", "_"))
        parser.add_argument(*dict.fromkeys(names), type=number, default=preset, help=text)
    parser.add_argument("--lengths", type=_lengths, metavar="N,N,...", help="text tokens of each row")
    add_medium_flags(parser)
    parser.add_argument("--device", help="cuda (also ROCm) or cpu; by default a GPU where there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: by device")
    parser.add_argument(
        "--train-flags", default="", metavar="FLAGS", help="of recipe: further flags of the training program, quoted"
    )
    parser.add_argument("--no-attribution", action="store_true", help="do not profile where the time goes")
    parser.add_argument("--json", type=FILE_TO_WRITE, metavar="FILE", help="write everything to this file")
    parser.add_argument("--picture", type=FILE_TO_WRITE, metavar="FILE", help="draw where the time goes (.svg, .png)")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
