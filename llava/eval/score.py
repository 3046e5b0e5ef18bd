"""Scores answer files again, without a model.

    python -m llava.eval.score results
    python -m llava.eval.score results/llava-v1.5-7b/duet-192 --judge --out scores.json

`llava.eval.run` scores by itself; this is for answers of a run that was stopped, for a judge that was not there, and
for scorers that have changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common.json_files import need
from llava.common.outside_files import files_below
from llava.common.path_flags import FILE_TO_WRITE, FOLDER_TO_READ
from llava.common.program import as_program
from llava.common.shown import say
from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.base import Benchmark
from llava.eval.runner.answer_settings import SETTINGS_SUFFIX, read_described
from llava.eval.runner.exit_status import exit_status, tell
from llava.eval.runner.result_files import BenchmarkFiles, result_file
from llava.eval.runner.scored import add_judge_flags, choose_judge, score_answers, summary_line, write_headlines


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns its exit status: 1 if something could not be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.score", description="Score again what was answered, without a model."
    )
    parser.add_argument("folder", type=FOLDER_TO_READ, help="--output of llava.eval.run, or a folder below it")
    parser.add_argument(
        "--eval-folder", "--eval_folder", type=FOLDER_TO_READ, help="benchmarks (default: those that were asked)"
    )
    parser.add_argument("--out", type=FILE_TO_WRITE, help="also write an object of headlines; for one model and budget")
    add_judge_flags(parser)
    options = parser.parse_args(arguments)
    return exit_status(lambda: _score_folder(options))


def _score_folder(options: argparse.Namespace) -> int:
    out = None if options.out is None else result_file(options.out, "--out")
    paths = files_below(options.folder, SETTINGS_SUFFIX) if options.folder.is_dir() else []
    if not paths:
        raise ValueError(f"There are no answers of llava.eval.run in {options.folder}; give its --output.")
    if options.out is not None and len({path.parent for path in paths}) > 1:
        raise ValueError(f"{options.folder} holds several models or budgets; --out is for one of them.")
    results, failed = [], False
    found: list[tuple[BenchmarkFiles, Benchmark]] = []
    for path in paths:
        try:
            name = path.name.removesuffix(SETTINGS_SUFFIX)
            found.append((BenchmarkFiles(path.parent, name), get_benchmark(name)))
        except ValueError as error:  # of a package that is not installed here, or not of llava.eval.run
            failed = True
            tell(f"The answers of {path} could not be scored: {error}")
    judge = choose_judge(options.judge, [benchmark for _, benchmark in found])
    for files, benchmark in found:
        try:
            root = options.eval_folder
            if root is None:
                about = read_described(files.settings)["about"]
                root = Path(need(about, "eval_folder", str, f"{files.settings}: about"))
            with files.answers.locked():
                results.append(score_answers(files, benchmark, root, judge))
        except (ValueError, OSError) as error:
            failed = True
            tell(f"{benchmark.title} could not be scored: {error}")
            continue
        say(f"{files.folder}: {summary_line(results[-1])}")
        if not results[-1].num_answered:
            failed = True
            tell(f"{files.answers.path} holds no answers, so {benchmark.title} has no score; run llava.eval.run again.")
    if out is not None:
        write_headlines(results, out)
    return int(failed)


if __name__ == "__main__":
    sys.exit(as_program(main))
