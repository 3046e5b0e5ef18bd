"""Damaged files of every kind that the programs read, through each program's own reader, in this process.

    cd tests && python -m attack.fuzz_files 2000 --seed 0

Each trial damages one file and reads it as its program does. It must be read, or refused in a sentence that names the
file; a library's bare words, a traceback or more than two minutes are failures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attack.fuzz_targets import Target, all_targets
from attack.mutations import mutate

PATIENCE = 120  # seconds
LONGEST = 3000  # characters of a sentence
OUTCOMES = ("read", "sentence", "raw", "traceback", "hang")
_OURS = f"{Path(__file__).resolve().parents[2]}/"
_BARE = ("[Errno", "Expecting", "'utf-8' codec", "invalid literal")


class Hanging(BaseException):
    """A trial ran out of time; no `except Exception` may hold it up."""


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hanging

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def run(count: int, seed: int, only: str = "", show: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Damage and read `count` files, the same ones for the same seed.

    Args:
        count: trials, spread evenly over the kinds of files.
        seed: of all choices.
        only: part of the names of the targets to try; all if empty.
        show: called with a line for every trial that failed.

    Returns:
        `tried`, the number of each of `OUTCOMES`, `targets` (outcomes by target) and `failures` (texts).
    """
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    total: Counter[str] = Counter()
    by_target: dict[str, Counter[str]] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        targets = [target for target in all_targets() if only in target.name]
        share = [count // len(targets) + (number < count % len(targets)) for number in range(len(targets))]
        for target, trials in zip(targets, share, strict=True):
            folder = Path(temporary) / target.name.replace(" ", "-")
            folder.mkdir()
            outcomes = by_target.setdefault(target.name, Counter())
            for outcome, text in _trials(target, folder, trials, random.Random(f"{seed} {target.name}")):
                outcomes[outcome] += 1
                total[outcome] += 1
                if outcome not in ("read", "sentence"):
                    failures.append(f"{target.name}: {outcome}: {text}")
                    if show is not None:
                        show(failures[-1])
            shutil.rmtree(folder, ignore_errors=True)
    logging.disable(logging.NOTSET)
    figures = {"tried": sum(total.values()), **{name: total[name] for name in OUTCOMES}}
    return figures | {"targets": {name: dict(counts) for name, counts in by_target.items()}, "failures": failures}


def _trials(target: Target, folder: Path, trials: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    if not trials:
        return
    files = target.build(folder)
    whole = {name: (folder / name).read_bytes() for name in files}
    outcome, text = _read(target, folder, "no file")
    assert outcome == "read", f"{target.name} as built: {text}"
    for _ in range(trials):
        name = draw.choice(sorted(files))
        damaged = mutate(whole[name], files[name], draw)
        (folder / name).write_bytes(damaged)
        outcome, text = _read(target, folder, name)
        yield outcome, f"{name} {damaged[:300] if len(damaged) < 5000 else damaged[:60]!r}: {text}"
        for each, content in whole.items():  # a program may have written to them
            (folder / each).write_bytes(content)


def _read(target: Target, folder: Path, name: str) -> tuple[str, str]:
    said = io.StringIO()
    try:
        with _patience(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            status = target.read(folder)
    except Hanging:
        return "hang", "".join(traceback.format_exc().splitlines(keepends=True)[-14:])
    except SystemExit as error:
        status, _ = (error.code if isinstance(error.code, int) else 1), said.write(str(error.code))
    except ValueError as error:
        frames = traceback.extract_tb(error.__traceback__)
        text = str(error)
        ours = frames[-1].filename.startswith(_OURS) and "site-packages" not in frames[-1].filename
        where = f"{frames[-1].filename}:{frames[-1].lineno}"
        return _judged(text, name, folder, target) if ours else "raw", f"{where}: {type(error).__name__}: {text[:600]}"
    except OSError as error:
        return "raw", f"{type(error).__name__}: {error}"
    except Exception:
        return "traceback", "".join(traceback.format_exc().splitlines(keepends=True)[-9:])
    text = said.getvalue()
    if "Traceback (most recent" in text:
        return "traceback", text[-1500:]
    return ("read", text[:300]) if status in (0, None) else (_judged(text, name, folder, target), text[:900])


def _judged(text: str, name: str, folder: Path, target: Target) -> str:
    """Whether a refusal is a sentence that names the file, its folder or what else stands for it."""
    names = (Path(name).name, str(folder), *target.names)
    named = any(part in text for part in names)
    return "sentence" if named and len(text) < LONGEST and not text.lstrip().startswith(_BARE) else "raw"


def say(text: str) -> None:
    """A line for the terminal, whatever characters it holds."""
    sys.stdout.write(text.encode("ascii", "backslashreplace").decode() + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line; the status is 1 if a trial failed."""
    parser = argparse.ArgumentParser(prog="python -m attack.fuzz_files", description=__doc__)
    parser.add_argument("count", type=int, help="trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a target's name")
    options = parser.parse_args()
    figures = run(options.count, options.seed, options.only, say)
    say(json.dumps({key: value for key, value in figures.items() if key != "failures"}, indent=1))
    return int(bool(figures["failures"]))


if __name__ == "__main__":
    sys.exit(main())
