"""Print the relative scores of review files, in LLaVA's format.

    python -m llava.eval.summarize_gpt_review -f review.jsonl

A line for each category and for all of them: its name and the second answer's mean grade in per cent of the first's.
Where a question was reviewed again, its last review counts; reviews without grades are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava.common.json_files import as_json
from llava.common.path_flags import FILE_TO_READ, FOLDER_TO_READ, as_text
from llava.common.program import as_program
from llava.common.shown import say
from llava.eval.benchmarks.answer_lines import read_answer_lines
from llava.eval.runner.exit_status import exit_status

PREFIXES = ("gpt4_text", "reviews_", "review_")
RULER = "=" * 33
HIGHEST = 1000
"""Grade that a review may give; judges are asked for 1 to 10."""

Pairs = dict[str, list[Sequence[float]]]


def summarise(path: Path, ignored: Collection[int | str] = ()) -> list[str]:
    """The printed lines of one review file.

    Args:
        path: JSON lines.
        ignored: ids of questions that do not count.

    Raises:
        ValueError: if the file is missing or holds no grades.
    """
    pairs, ungraded = _pairs(path, {str(identity) for identity in ignored})
    if not pairs:
        raise ValueError(f"{path} holds no review with two grades.")
    lines = [path.name.replace("gpt4_text_", "").replace(".jsonl", "")]
    for name, values in sorted(pairs.items()):
        first, second = (round(number, 3) for number in np.asarray(values).mean(0).tolist())
        if not first:
            raise ValueError(f"{path}: the first answers of {name} have the mean grade 0; nothing compares with it.")
        lines.append(f"{name} {round(second / first * 100, 1)}")
    lines.append(RULER)
    if ungraded:
        lines.append(f"{ungraded} reviews without two grades are left out.")
    return lines


def review_files(folder: Path) -> list[Path]:
    """Files in a folder whose names say that they hold reviews.

    Raises:
        ValueError: if there is none.
    """
    found = sorted(path for path in folder.glob("*.jsonl") if path.name.startswith(PREFIXES))
    if not found:
        raise ValueError(
            f"{folder} holds no file named {', '.join(f'{name}*.jsonl' for name in PREFIXES)}; use --files."
        )
    return found


def _pairs(path: Path, ignored: Collection[str]) -> tuple[Pairs, int]:
    """Grades by category, all of them under `all`; and how many reviews have none."""
    latest: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(read_answer_lines(path)):
        _check(line, f"{path}, review {number + 1}")
        latest[str(line["question_id"]) if "question_id" in line else number] = line
    pairs: defaultdict[str, list[Sequence[float]]] = defaultdict(list)
    ungraded = 0
    for identity, line in latest.items():
        grades = line.get("tuple", line.get("score"))
        if identity in ignored:
            continue
        if not isinstance(grades, list) or len(grades) != 2 or min(grades) < 0:
            ungraded += 1
            continue
        for name in dict.fromkeys((line.get("category", "all"), "all")):
            pairs[name].append(grades)
    return dict(pairs), ungraded


def _check(line: dict[str, Any], place: str) -> None:
    """See that what a summary reads of a review is of its type; -1 stands for a grade that could not be read."""
    if not isinstance(line.get("category", ""), str):
        raise ValueError(f"{place} has the category {as_json(line['category'])}; it must be text. Mend the line.")
    for name in ("tuple", "score"):
        grades = line.get(name)
        numbers = grades if isinstance(grades, list) else [] if grades is None else [grades]
        kinds_fit = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
        if not kinds_fit or any(not -1 <= number <= HIGHEST for number in numbers):
            raise ValueError(
                f"{place} has the {name} {as_json(grades)}; it must be a list of two numbers from 0 to {HIGHEST}, or "
                "of -1 where there is no grade. Mend the line."
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _run(options), kept="")


def _run(options: argparse.Namespace) -> int:
    if not options.files and options.dir is None:
        raise ValueError("No review is named; give --files, or --dir with a folder of them.")
    folder = options.dir or Path()
    files = [folder / name for name in options.files] if options.files else review_files(folder)
    for path in sorted(files):
        say("\n".join(summarise(path, options.ignore or ())))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.summarize_gpt_review", description="Print the relative scores of review files."
    )
    parser.add_argument("-d", "--dir", type=FOLDER_TO_READ, help="folder of review files")
    parser.add_argument(
        "-f", "--files", type=as_text(FILE_TO_READ), nargs="*", help="review files, in --dir if that is given"
    )
    parser.add_argument("-i", "--ignore", nargs="*", type=int, help="ids of questions that do not count")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
