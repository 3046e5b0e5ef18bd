"""Runs benchmarks: asks a model their questions, scores the answers, and writes result files with all settings.

    python -m llava.eval.run --model-path CHECKPOINT --benchmarks gqa,pope --compression duet-192 --batch-size 16
    python -m llava.eval.run --model-path CHECKPOINT --num-gpus 8 --out scores.json

Everything about a benchmark goes to OUTPUT/<model>/<budget>/: `gqa.answers.jsonl` in LLaVA's format, `gqa.result.json`,
and, where there is one, what the benchmark's server takes. The same command goes on where it stopped, with any number
of GPUs; answers that were given under other settings are never mixed in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_WRITE, FOLDER_TO_READ, FOLDER_TO_WRITE, as_text
from llava.common.program import as_program
from llava.common.shown import say
from llava.eval.benchmarks import benchmark_names, get_benchmarks
from llava.eval.benchmarks.base import Benchmark, JudgedBenchmark
from llava.eval.runner.exit_status import exit_status, tell
from llava.eval.runner.flags import add_batch_flags, add_compression_flags, add_generation_flags, check_options
from llava.eval.runner.from_flags import devices_of, evaluated_model, generation_of, loader_workers_of, workers_of
from llava.eval.runner.jobs import EvaluatedModel, Job
from llava.eval.runner.result_files import BenchmarkFiles, folder_name, result_file
from llava.eval.runner.scored import add_judge_flags, choose_judge, score_answers, summary_line, write_headlines
from llava.eval.scoring.benchmark_result import Result
from llava.inference.loading_flags import add_loading_flags, best_device

PAPER = ("pope", "sqa", "textvqa", "mme", "gqa")
"""Benchmarks of the paper's main table, and of a run that names none."""


class BenchmarkRun(NamedTuple):
    """A benchmark of a run, where everything about it lies, and its questions and answers."""

    benchmark: Benchmark
    files: BenchmarkFiles
    job: Job


def benchmark_run(
    options: argparse.Namespace, evaluated: EvaluatedModel, benchmark: Benchmark, root: Path, files: BenchmarkFiles
) -> BenchmarkRun:
    """Read the questions of a benchmark; answers that are there are left alone.

    Raises:
        ValueError: if a file is missing or something does not fit.
    """
    spec = evaluated.spec
    generation = generation_of(options, options.max_new_tokens or benchmark.max_new_tokens)
    settings = {
        "conv_mode": spec.template,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "num_beams": options.num_beams,
        "max_new_tokens": generation.max_new_tokens,
        "dtype": spec.dtype,
        "bits": spec.bits,
        "num_frames": spec.num_frames,
        "image_opening": spec.image_opening,
        "limit": options.limit,
        **spec.limits.given(),
    }
    about = {"compression": evaluated.compression_name, "settings": settings, "eval_folder": str(root)}
    job = Job(
        title=benchmark.title,
        evaluated=evaluated,
        generation=generation,
        questions=benchmark.questions(root),
        answers=files.answers,
        settings=files.settings,
        about=about,
        limit=options.limit,
        loader_workers=loader_workers_of(options),
        hint="--fresh removes them and starts anew.",
    )
    return BenchmarkRun(benchmark, files, job)


def run(options: argparse.Namespace, benchmarks: Sequence[Benchmark]) -> tuple[list[Result], bool]:
    """Ask and score benchmarks.

    Args:
        options: options of the command line.
        benchmarks: what to ask, in this order; those that a judge grades are scored when all others are.

    Returns:
        results, and whether everything that was asked for is there.

    Raises:
        ValueError: if something does not fit; nothing is answered then.
        llava.eval.runner.exit_status.WorkerError: if a process died; answers until then are kept.
    """
    root = Path(options.eval_folder)
    judge = choose_judge(options.judge, benchmarks)
    evaluated = evaluated_model(options)
    devices = devices_of(options, options.num_gpus)
    with ExitStack() as stack:
        output = output_folder(options)
        runs = []
        for benchmark in benchmarks:
            files = BenchmarkFiles(
                output / folder_name(evaluated.name) / folder_name(evaluated.compression_name), benchmark.name
            )
            stack.enter_context(files.answers.locked())
            runs.append(benchmark_run(options, evaluated, benchmark, root, files))
        for one in runs:  # nothing of former runs is touched before everything is known to fit
            if options.fresh:
                one.files.clear()
            one.job.open(options.fresh)
        judged = [one for one in runs if isinstance(one.benchmark, JudgedBenchmark)]
        results: list[Result] = []
        whole = True
        needed = any(one.job.left for one in runs)  # processes are started for nothing less
        with workers_of(evaluated.spec, devices) if needed else nullcontext() as workers:
            for one in runs:
                if workers is not None and one.job.left:
                    one.job.answer(workers, options.batch_size)
                if one not in judged:
                    whole &= _score(one, root, None, results)
        for one in judged:
            whole &= _score(one, root, judge, results)
    return results, whole


def _score(one: BenchmarkRun, root: Path, judge: Any, results: list[Result]) -> bool:
    """Score one benchmark and tell; whether nothing is amiss."""
    one.job.report_problems()
    try:
        result = score_answers(one.files, one.benchmark, root, judge, one.job.questions)
    except (ValueError, OSError) as error:
        tell(
            f"{one.benchmark.title} could not be scored: {error} The answers are kept; the same command, or "
            f"`python -m llava.eval.score {one.files.folder}`, scores them."
        )
        return False
    say(summary_line(result))
    results.append(result)
    return not one.job.problems


def output_folder(options: argparse.Namespace) -> Path:
    """Where results go: by default `results`, beside the file of `--out` where that is asked for."""
    if options.output is not None:
        return Path(options.output)
    return Path(options.out).parent / "results" if options.out is not None else Path("results")


def main(arguments: Sequence[str] | None = None, benchmarks: Sequence[Benchmark] | None = None) -> int:
    """Command line; returns its exit status.

    Args:
        arguments: words; None takes those of the process.
        benchmarks: benchmarks used instead of those that `--benchmarks` names.

    Returns:
        0; 1 if questions have no answer, something could not be scored or a process died; 2 for wrong input.
    """
    options = parse(arguments)
    return exit_status(lambda: _run_and_write(options, benchmarks))


def _run_and_write(options: argparse.Namespace, benchmarks: Sequence[Benchmark] | None) -> int:
    check_options(options)
    out = None if options.out is None else result_file(options.out, "--out")
    require_apart({"--out": options.out}, [options.model_path, options.model_base, options.compression])
    if options.num_gpus is None:
        options.num_gpus = max(1, torch.cuda.device_count()) if best_device(options.device) == "cuda" else 1
    results, whole = run(options, benchmarks or get_benchmarks(options.benchmarks))
    if out is not None:
        write_headlines(results, out)
    return 0 if whole else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.run", description="Ask a model the questions of benchmarks, and score its answers."
    )
    add_loading_flags(parser)
    parser.add_argument(
        "--benchmarks",
        default=",".join(PAPER),
        help=f"some of {', '.join(benchmark_names())} (default: {','.join(PAPER)})",
    )
    add_compression_flags(parser)
    add_batch_flags(parser, batch_size=8)
    parser.add_argument("--num-gpus", "--num_gpus", type=int, help="processes, a GPU each (default: all)")
    parser.add_argument(
        "--eval-folder",
        "--eval_folder",
        type=as_text(FOLDER_TO_READ),
        default="playground/data/eval",
        help="(default: playground/data/eval)",
    )
    parser.add_argument(
        "--output",
        type=as_text(FOLDER_TO_WRITE),
        help="folder of results (default: results, beside --out where that is given)",
    )
    parser.add_argument(
        "--out",
        type=as_text(FILE_TO_WRITE),
        help="also write an object of headlines, such as {'GQA': 61.9}, to this file",
    )
    parser.add_argument("--conv-mode", "--conv_mode", help="conversation template; by default that of training")
    add_generation_flags(parser, temperature=0.0, max_new_tokens=None)
    parser.add_argument(
        "--num-frames", "--num_frames", type=int, help="shown of a video (default: as the model's family)"
    )
    parser.add_argument("--limit", type=int, help="ask only so many questions of each benchmark")
    parser.add_argument("--fresh", action="store_true", help="remove former answers of these benchmarks and start anew")
    add_judge_flags(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(as_program(main))
