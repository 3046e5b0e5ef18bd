"""Runs the study: `bash scripts/quickstart.sh --study`, or, where an environment exists,

    python -m playground.study --out playground/output/study

The same command goes on where it was stopped: what a cell needs is done again only for cells that were not finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from llava.common.atomic_write import write_whole
from llava.common.folder_lock import alone_in
from llava.common.number_flags import MOST_PROCESSES, count
from llava.common.path_flags import FOLDER_TO_WRITE
from llava.common.program import INTERRUPTED, as_program
from llava.cost.machine import usable_cores
from playground.study.cells import UNCOMPRESSED, Cell, all_cells
from playground.study.place import Place, StudySettings
from playground.study.report import write_report
from playground.study.work import ROOT, identity, run_cell, train_projector
from playground.study.worker_pool import workers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done, then write the report; returns the exit status."""
    options = _parser().parse_args(arguments)
    return in_place(options.out, lambda: _settings(options), lambda place: _study(place, options))


def in_place(out: Path, settings: Callable[[], StudySettings], study: Callable[[Place], int]) -> int:
    """Run a study alone in its folder; counts its time, and says that the same command goes on where it is stopped.

    Args:
        out: folder of the study, new or of the same study.
        settings: says what it is a study of; errors that it raises are told.
        study: runs what is not done, and returns the exit status; a ValueError that it raises is told.
    """
    began = time.perf_counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to stop or interrupted: both end alike
    root = out.resolve()
    with ExitStack() as held:
        try:
            busy = f"{root} is in use by another study"
            held.enter_context(alone_in(root, busy, "wait for it or stop it, or choose another --out"))
            place = dataclasses.replace(Place.open(root, settings()), began=began)
        except (ValueError, OSError) as error:
            print(f"study: {error}", file=sys.stderr)
            return 2
        try:
            return study(place)
        except ValueError as error:
            print(f"study: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("study: stopped; the same command goes on with what is not finished.", file=sys.stderr)
            return INTERRUPTED
        finally:
            add_time(place, time.perf_counter() - began)


def _study(place: Place, options: argparse.Namespace) -> int:
    counts = ("--pretrain", options.images, "--train", options.images, "--test", options.questions)
    make_data(place, "playground.world", *counts)
    failed = run_all(place, options.jobs)
    for name, reason in failed.items():
        print(f"study: {name} failed: {reason}", file=sys.stderr)
    if failed:
        print(
            f"study: {len(failed)} jobs failed; their logs are under {place.root}. The same command tries them again."
        )
        return 1
    print(f"Wrote {write_report(place)} and its plots.")
    return 0


def make_data(place: Place, module: str, *flags: object) -> None:
    """What a study is about, written once by a module's command line.

    Args:
        place: its folder.
        module: module that writes into `--out`.
        flags: its other flags, with their values.

    Raises:
        ValueError: if it fails.
    """
    done = place.data / ".done"
    if done.is_file():
        return
    command = [sys.executable, "-m", module, "--out", str(place.data), *map(str, flags)]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status:
        raise ValueError(f"{module} ended with status {status}, so {place.data} is not whole. Run the study again.")
    done.touch()


def run_all(place: Place, jobs: int) -> dict[str, BaseException]:
    """Run every job that is not done, several at once; one that fails does not stop the others.

    Returns:
        What went wrong, by name of the job.
    """
    os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // jobs))  # read by the processes that start below
    waiting = {seed: _cells_to_do(place, seed) for seed in range(place.settings.seeds)}
    for one in waiting:
        for cell in (Cell(UNCOMPRESSED), *all_cells()):
            place.compression_file(one, cell)  # several processes read them later
    failed: dict[str, BaseException] = {}
    total = sum(map(len, waiting.values()))
    with workers(jobs) as pool, tqdm(total=total, desc="Study", unit="cell", smoothing=0.1) as bar:
        running: dict[Future[None], tuple[str, int | None]] = {
            pool.submit(train_projector, place, seed): (f"projector of seed {seed}", seed)
            for seed, cells in waiting.items()
            if cells
        }
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                name, seed = running.pop(future)
                error = future.exception()
                if error is not None:
                    failed[name] = error
                elif seed is not None:
                    for cell in waiting[seed]:
                        running[pool.submit(run_cell, place, seed, cell)] = (f"{cell.name} of seed {seed}", None)
                bar.update(seed is None)
    return failed


def _cells_to_do(place: Place, seed: int) -> list[Cell]:
    """The uncompressed model first: it takes longest."""
    cells = [] if place.training_free(seed).is_file() else [Cell(UNCOMPRESSED)]
    return cells + [cell for cell in all_cells() if not place.trained(seed, cell).is_file()]


def add_time(place: Place, seconds: float) -> None:
    """Keep how long the study has run in all, over its interruptions."""
    record, before = place.root / "seconds.txt", place.noted
    if before is None and record.is_file():
        print(f"study: {record} is damaged; the time that it held is not counted.", file=sys.stderr)
    write_whole(record, f"{(before or 0.0) + seconds:.0f}\n")


def of_assets() -> str:
    """Changes with the tower and the language model that every study starts from."""
    assets = hashlib.sha256()
    for path in sorted((ROOT / "playground" / "assets").rglob("*")):
        if path.is_file():
            assets.update(path.read_bytes())
    return assets.hexdigest()[:16]


def _settings(options: argparse.Namespace) -> StudySettings:
    of_data = f"{of_assets()}, {options.images} images, {options.questions} questions"
    steps = options.pretrain_steps, options.finetune_steps
    return StudySettings(options.seeds, *steps, data=of_data, methods=identity())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m playground.study", description="The paper's tables in miniature.")
    parser.add_argument("--out", type=FOLDER_TO_WRITE, required=True, help="folder; an unfinished study there goes on")
    parser.add_argument("--seeds", type=count(), default=3, help="models of each kind")
    parser.add_argument("--images", type=count(), default=10240, help="for training, captioned and asked about")
    parser.add_argument("--questions", type=count(), default=1000, help="held out")
    parser.add_argument("--pretrain-steps", type=count(), default=160, help="of the projector, 64 captions each")
    parser.add_argument("--finetune-steps", type=count(), default=120, help="of each model, 16 conversations each")
    parser.add_argument(
        "--jobs", type=count(1, MOST_PROCESSES), default=2, help="cells at a time; cores are shared out among them"
    )
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
