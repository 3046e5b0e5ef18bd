"""Command line of the attack."""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tqdm import tqdm

from attack import evaluation, fuzz_files, load, training
from attack.figures import Figures


def fuzzed(scratch: Path, count: int, seed: int) -> Figures:
    """Damaged files of every kind through the programs' own readers; 100 x count of them."""
    found = fuzz_files.run(100 * count, seed)
    figures = Figures("damaged and odd files", found["tried"], failures=list(found["failures"]))
    figures.outcomes.update({name: found[name] for name in fuzz_files.OUTCOMES})
    return figures


PREPARED = {training: training.Trainings, evaluation: evaluation.Evaluations}
"""What the attacks of a module disturb: undisturbed runs and what they need, made once for all of them."""
ATTACKS: dict[str, Callable[[Any, int, int], Figures]] = {
    "kills": training.kills,
    "signals": training.signals,
    "damages": training.damages,
    "full-disks": training.full_disks,
    "second-starts": training.second_starts,
    "eval-kills": evaluation.kills,
    "eval-interrupts": evaluation.interrupts,
    "eval-damages": evaluation.damages,
    "eval-full-disks": evaluation.full_disks,
    "eval-second-starts": evaluation.second_starts,
    "load": load.load,
    "files": fuzzed,
}


def named(word: str) -> tuple[str, int | None]:
    """An attack and its count; None where the word has none."""
    name, _, count = word.partition("=")
    if name not in ATTACKS or (count and not count.isdecimal()) or count == "0":
        raise argparse.ArgumentTypeError(f"{word!r} is none; give {', '.join(ATTACKS)}, or one of them with =COUNT")
    return name, int(count) if count else None


def main() -> int:
    """Run the attacks named, or all."""
    parser = argparse.ArgumentParser(prog="python -m attack", description=__doc__)
    words = f"of {', '.join(ATTACKS)}, each with its count where that is another, kills=30; default: all"
    parser.add_argument("attacks", nargs="*", metavar="ATTACK[=COUNT]", type=named, default=[], help=words)
    parser.add_argument("--count", type=int, default=10, help="trials of each attack; default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of what is tried; default: 0")
    parser.add_argument("--scratch", type=Path, help="folder to work in, kept; default: a temporary one, removed")
    parser.add_argument("--output", type=Path, help="file that takes the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # the imported modules are not searched by every collection of every trial
    tqdm.monitor_interval = 0  # a thread of the parent may hold a lock while a trial is forked
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="attack-"))
    os.environ["HF_DATASETS_CACHE"] = str(scratch / "tables")
    figures: list[Figures] = []
    prepared = functools.cache(lambda kind: kind(_made(scratch / kind.__name__)))
    try:
        for name, count in options.attacks or [(name, None) for name in ATTACKS]:
            kind = PREPARED.get(sys.modules[ATTACKS[name].__module__])
            disturbed = prepared(kind) if kind else _made(scratch / name)
            figures.append(ATTACKS[name](disturbed, count or options.count, options.seed))
            print(figures[-1].report(), flush=True)
            _write(options, figures)
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    return int(any(figure.failures for figure in figures))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _write(options: argparse.Namespace, figures: list[Figures]) -> None:
    if options.output is not None:
        about = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
        about |= {"count": options.count, "seed": options.seed}
        text = json.dumps({"about": about, "attacks": [figure.as_dict() for figure in figures]}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
