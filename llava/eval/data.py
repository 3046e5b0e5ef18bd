"""The data of the benchmarks: what to download from where, where it goes, and whether all of it is there.

    python -m llava.eval.data --benchmarks gqa,pope
    python -m llava.eval.data --check --images

Nothing is downloaded: several sets want their terms to be accepted first. Without `--check` it says what to do, and
what is there already; with it, it reads the questions as an evaluation does, counts them, looks for the images that
they name, and ends with status 1 if anything is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.common.outside_files import in_words
from llava.common.path_flags import FOLDER_TO_READ
from llava.common.program import as_program
from llava.eval.benchmarks import benchmark_names, get_benchmarks
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.datasets import EVAL_ZIP, Dataset, DatasetPart
from llava.eval.benchmarks.questions import Question
from llava.eval.runner.exit_status import exit_status

SAMPLE = 500
"""Images and videos that are looked for unless all are asked for, evenly spread over the questions."""


@dataclass(frozen=True)
class Findings:
    """What a check found of one benchmark.

    Attributes:
        questions: that count; None if they could not be read.
        looked_for: images and videos that were looked for.
        named: images and videos that the questions name, each once.
        problems: sentences; none if the benchmark can be run and scored.
        left_out: sentences about optional parts that are missing.
    """

    questions: int | None
    looked_for: int
    named: int
    problems: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _run(options), kept="")


def _run(options: argparse.Namespace) -> int:
    benchmarks = get_benchmarks(options.benchmarks)
    if options.images and not options.check:
        raise ValueError("--images is about what --check looks for; give both.")
    if not options.check:
        print(f"Evaluation folder: {options.eval_folder}\neval.zip of LLaVA: {EVAL_ZIP}\n")
        print("\n\n".join(directions(benchmark, benchmark.dataset(), options.eval_folder) for benchmark in benchmarks))
        return 0
    ready = [_report(benchmark, options.eval_folder, options.images) for benchmark in benchmarks]
    print(f"{sum(ready)} of {len(ready)} benchmarks are ready.")
    return 0 if all(ready) else 1


def directions(benchmark: Benchmark, dataset: Dataset, root: Path) -> str:
    """What to download from where, and where it goes; what is there is marked.

    Args:
        benchmark: whose data.
        dataset: what it needs.
        root: LLaVA's `playground/data/eval`.
    """
    count = "" if dataset.questions is None else f", {dataset.questions} questions"
    lines = [f"{benchmark.name} ({benchmark.title}{count}); licence: {dataset.licence}"]
    for part in dataset.parts:
        mark = "there  " if find(part, root) else "missing"
        optional = " (optional)" if part.optional else ""
        lines += [f"  {mark} {part.places[0]}: {part.what}{optional}", f"          {part.source}: {part.url}"]
    return "\n".join([*lines, *(f"  Note: {note}" for note in dataset.notes)])


def find(part: DatasetPart, root: Path) -> Path | None:
    """The file, or the folder with something in it; None if there is neither."""
    for place in part.places:
        path = root / place
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            return path
    return None


def check(benchmark: Benchmark, dataset: Dataset, root: Path, all_images: bool = False) -> Findings:
    """Whether everything is there that answering and scoring a benchmark needs.

    Args:
        benchmark: reads the questions.
        dataset: what it needs.
        root: LLaVA's `playground/data/eval`.
        all_images: look for every image and video, not for `SAMPLE` of them.
    """
    parts, expected, within = dataset.parts, dataset.questions, dataset.within
    if dataset.instead and not find(parts[0], root) and all(find(part, root) for part in dataset.instead):
        parts, expected, within = dataset.instead, dataset.questions_instead, ""
    missing = [part for part in parts if not find(part, root)]
    problems = [_missing(part, root) for part in missing if not part.optional]
    left_out = tuple(_missing(part, root) for part in missing if part.optional)
    if parts and not find(parts[0], root):
        return Findings(None, 0, 0, tuple(problems))
    try:
        questions = benchmark.questions(root)
    except (ValueError, OSError) as error:
        return Findings(None, 0, 0, (*problems, in_words(error)))
    counted = sum(not within or any(within in path.parts for path in pictures(question)) for question in questions)
    if expected is not None and counted != expected:
        problems.append(
            f"There are {counted} questions{f' about {within}' if within else ''}; {expected} are published."
        )
    named = list(dict.fromkeys(path for question in questions for path in pictures(question)))
    chosen = named if all_images else evenly(named, SAMPLE)
    absent = [path for path in chosen if not path.exists()]
    if absent:
        problems.append(f"{len(absent)} of {len(chosen)} images or videos are missing, {absent[0]} first.")
    return Findings(counted, len(chosen), len(named), tuple(problems), left_out)


def pictures(question: Question) -> list[Path]:
    """Files that a question shows; images that stand inside the question file are none."""
    video = [question.video] if question.video is not None else []
    return [*(picture for picture in question.images if isinstance(picture, Path)), *video]


def evenly(items: Sequence[Path], count: int) -> list[Path]:
    """The first item and others evenly spaced behind it, at most `count`."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _missing(part: DatasetPart, root: Path) -> str:
    path = root / part.places[0]
    empty = "is an empty folder" if path.is_dir() else "is missing"
    return f"{path} ({part.what}) {empty}; get {part.source}: {part.url}"


def _report(benchmark: Benchmark, root: Path, all_images: bool) -> bool:
    """Print what a check found; returns whether the benchmark is ready."""
    found = check(benchmark, benchmark.dataset(), root, all_images)
    questions = "no questions" if found.questions is None else f"{found.questions} questions"
    images = f"; {found.looked_for} of {found.named} images or videos were looked for" if found.named else ""
    print(f"{benchmark.name}: {'not ready' if found.problems else 'ready'}, {questions}{images}")
    for problem in found.problems:
        print(f"  {problem}")
    for sentence in found.left_out:
        print(f"  Optional: {sentence}")
    return not found.problems


def _parser() -> argparse.ArgumentParser:
    names = benchmark_names()
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmarks", default=",".join(names), help=f"some of {', '.join(names)} (default: all)")
    parser.add_argument(
        "--eval-folder",
        "--eval_folder",
        type=FOLDER_TO_READ,
        default=Path("playground/data/eval"),
        metavar="FOLDER",
        help="where the data lies (default: playground/data/eval)",
    )
    parser.add_argument("--check", action="store_true", help="look whether all is there; status 1 if not")
    parser.add_argument("--images", action="store_true", help=f"look for all images, not for {SAMPLE} a benchmark")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
