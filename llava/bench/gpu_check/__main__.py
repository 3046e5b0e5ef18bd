"""Checks and measurements that need a GPU, in at most 8 minutes on 80 GB: `bash scripts/gpu_check.sh [OUT]`.

Parts run one after another, the most important first, each in a process of its own that is killed at its limit.
Every result is a JSON line in OUT, on the disk as soon as it is known, so that a run that is cut short leaves what it
had.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llava.bench.gpu_check.record import FILE_NAME, ResultLog, place_of
from llava.bench.gpu_check.supervise import FAILED, NOT_RUN, OVER, run_part
from llava.common.number_flags import positive
from llava.common.path_flags import FOLDER_TO_READ, TO_READ, TO_WRITE
from llava.common.program import as_program

ROOT = Path(__file__).resolve().parents[3]
BUDGET = 480  # seconds for everything
SHAPES = ("llava-1.5-7b", "tiny")


@dataclass(frozen=True)
class CheckPart:
    """One part: its name, seconds that it may take, and what it finds out."""

    name: str
    limit: int
    about: str


PARTS = (
    CheckPart("environment", 25, "card, driver, versions, commit"),
    CheckPart("golden", 50, "the recorded cases of tests/golden on the device (llava.verify)"),
    CheckPart("tests", 65, "pytest -m cuda; among them that no step waits for the device"),
    CheckPart("prefill", 80, "none against duet-192, -128 and -64 in turn, batch 1 and 16, ragged text, and peers"),
    CheckPart("train", 160, "forward and backward at the largest batch: padded, packed, checkpointing, peers"),
    CheckPart("decode", 60, "tokens a second at batch 1, 8 and 32, beside the bytes that must be read"),
    CheckPart("attribution", 40, "where the milliseconds of a prefill and of a training step go"),
)
"""The most important first; together within `BUDGET`."""

_DESCRIPTION = """\
Everything that wants a GPU, in at most {minutes} minutes on one card with 80 GB. The parts, in turn, and their limits:

{plan}"""
_EPILOG = """\
Every line of OUT is a JSON object with the keys run, at (seconds since the start), part and kind: start and end of a
part, row (a result), round (seconds of every budget, as they come), search (a batch that was tried). A file that is
there is continued. Needs torch, transformers, pillow and this tree; without pytest its part is not run. Weights are
random, nothing is downloaded.

Exit status: 0 if no part failed, 1 if one did, was over its limit or could not write, 2 if nothing could be begun."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        chosen = _chosen(options)
        if options.dry_run or os.environ.get("DRY_RUN", "0") not in ("", "0"):
            print(_plan(chosen))
            return 0
        path = place_of(options.out)
    except ValueError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    now = time.time()
    record = ResultLog(path, datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ") + f"-{os.getpid()}", now)
    signal.signal(signal.SIGTERM, _stop)
    try:
        states = run_parts(chosen, options, record)
    except KeyboardInterrupt:
        print(f"gpu_check: interrupted; what was known is in {path}.", file=sys.stderr)
        return 130
    kept = record.holds([part.name for part in chosen])
    where = f"all results are in {path}" if kept else f"not all results could be written to {path}; see above"
    print(f"{', '.join(f'{count} {state}' for state, count in Counter(states).items())}; {where}.")
    return 1 if FAILED in states or OVER in states or not kept else 0


def run_parts(parts: Sequence[CheckPart], options: argparse.Namespace, record: ResultLog) -> list[str]:
    """Run parts in turn, and say in a line on the screen how each went.

    Args:
        parts: parts to run, each with its limit in seconds.
        options: the parsed command line.
        record: takes the results.

    Returns:
        How each ended.
    """
    deadline = time.monotonic() + options.budget
    states = []
    for part in parts:
        left = deadline - time.monotonic()
        if left <= 0:
            record.add(part.name, "end", state=NOT_RUN, reason=f"the {options.budget} s for everything are used up")
            states.append(NOT_RUN)
            continue
        limit = min(part.limit, left)
        began = time.monotonic()
        state = run_part(part.name, _command(part, options, record, limit), limit, record, _environment())
        print(f"{part.name:12} {state:14} {time.monotonic() - began:6.1f} s of {limit:.0f}", flush=True)
        states.append(state)
    return states


def _command(part: CheckPart, options: argparse.Namespace, record: ResultLog, limit: float) -> list[str]:
    words = ["--part", part.name, "--out", str(record.path.resolve()), "--run", record.run]
    words += ["--began", repr(record.began), "--seconds", repr(limit), "--shape", options.shape]
    words += ["--cases", str(options.cases), "--tests", str(options.tests)]
    if options.device:
        words += ["--device", options.device]
    return [sys.executable, "-m", "llava.bench.gpu_check.child", *words]


def _environment() -> dict[str, str]:
    """This process's, with this tree first on the path and the network left alone."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _chosen(options: argparse.Namespace) -> list[CheckPart]:
    """The parts to run, with the limits that were asked for.

    Raises:
        ValueError: for a part that does not exist, or a limit that is no number above 0.
    """
    names = [part.name for part in PARTS]
    limits: dict[str, int] = {}
    for word in options.limit:
        name, _, seconds = word.partition("=")
        if not seconds.isdecimal() or len(seconds) > 6 or int(seconds) < 1:
            raise ValueError(f"--limit is {word!r}; it must be PART=SECONDS, such as train=60, at most 999999.")
        limits[name] = int(seconds)
    for name in [*(options.parts or []), *limits]:
        if name not in names:
            raise ValueError(f"There is no part {name!r}; the parts are {', '.join(names)}.")
    if not options.budget > 0:
        raise ValueError(f"--budget is {options.budget}; it must be a number of seconds above 0.")
    chosen = [part for part in PARTS if not options.parts or part.name in options.parts]
    return [CheckPart(part.name, limits.get(part.name, part.limit), part.about) for part in chosen]


def _plan(parts: Sequence[CheckPart]) -> str:
    lines = [f"{part.name:12} {part.limit:4} s  {part.about}" for part in parts]
    return "\n".join([*lines, f"{'in all':12} {sum(part.limit for part in parts):4} s at most"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh",
        description=_DESCRIPTION.format(minutes=BUDGET // 60, plan=_plan(PARTS)),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        nargs="?",
        type=TO_WRITE,
        default=Path(FILE_NAME),
        help=f"file for the results, or a folder, where it is called {FILE_NAME} (default: %(default)s)",
    )
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these; all if left out")
    parser.add_argument("--limit", nargs="+", metavar="PART=SECONDS", default=[], help="other limits than those above")
    parser.add_argument(
        "--budget", type=positive(1e6), default=BUDGET, help="seconds for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--shape", choices=SHAPES, default=SHAPES[0], help="of the measured model (default: %(default)s)"
    )
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: cuda if there is a GPU, else cpu)")
    parser.add_argument(
        "--cases", type=TO_READ, default=ROOT / "tests/golden", help="of llava.verify (default: %(default)s)"
    )
    parser.add_argument(
        "--tests", type=FOLDER_TO_READ, default=ROOT / "tests", help="folder of tests (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list parts and limits, run nothing; so does DRY_RUN=1")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
