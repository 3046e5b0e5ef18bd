"""Scores answer files and writes result files, with a judge or without."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from llava.common.json_files import write_json
from llava.eval.benchmarks.base import Benchmark, JudgedBenchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.judging.chat_api import KEY_VARIABLE, URL_VARIABLE
from llava.eval.judging.judge import Judge, judge_is_configured
from llava.eval.runner.answer_settings import hash_of, read_described
from llava.eval.runner.result_files import BenchmarkFiles
from llava.eval.scoring.benchmark_result import Result
from llava.eval.scoring.scores import Scores
from llava.eval.scoring.unread import NOTED_SHARE, Unread

JUDGED_BEFORE = "No judge was asked this time; these are the judge's numbers of {date} on the same answers."


def score_answers(
    files: BenchmarkFiles,
    benchmark: Benchmark,
    root: Path,
    judge: Judge | None,
    questions: Sequence[Question] | None = None,
) -> Result:
    """Score the answers of one benchmark and write its result file.

    Where no judge is asked, a judge's numbers on the same answers stay, and the result says so in a note.

    Args:
        files: where the answers are.
        benchmark: the benchmark of that name.
        root: LLaVA's `playground/data/eval`.
        judge: grades the answers that need it; None leaves them ungraded.
        questions: questions of the benchmark, where they are known.

    Raises:
        ValueError: if a file is missing or does not fit, or the judge cannot be asked.
    """
    stored = read_described(files.settings)
    questions = benchmark.questions(root) if questions is None else questions
    if hash_of(questions) != stored["identity"]["questions"]:
        raise ValueError(f"The answers in {files.answers.path} are to other questions than those in {root}.")
    lines = replace(files.answers, run=stored["run"]).answered(questions)
    answers = [Answer(questions[number], str(line["text"])) for number, line in lines.items()]
    judge = judge if answers and isinstance(benchmark, JudgedBenchmark) else None
    digest = _digest(answers)
    kept = None if judge is not None else _judged_before(files, digest)
    if kept is not None:
        said = (JUDGED_BEFORE.format(date=kept.date), *_submit(files, benchmark, root, answers))
        return replace(kept, notes=(*kept.notes, *said))
    scores = _scores(files, benchmark, root, judge, answers)
    unread = _unread(benchmark, answers, scores)
    notes = list(scores.notes)
    if len(answers) < len(questions):
        notes.append(f"{len(answers)} of {len(questions)} questions were answered; the numbers are about these.")
    if judge is None and scores.values:
        notes += unread.notes(benchmark.unread_as)
    elif unread.empty > NOTED_SHARE * unread.answers:
        notes.append(f"{unread.empty} of {unread.answers} answers are empty.")
    notes += _submit(files, benchmark, root, answers)
    result = Result(
        **_described(benchmark, stored),
        **_took(lines.values()),
        num_questions=len(questions),
        num_answered=len(answers),
        headline=scores.headline,
        values=scores.values,
        notes=tuple(notes),
        num_counted=scores.counted,
        judge=None if judge is None else judge.describe() | dict(scores.judged_by),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        answers=digest,
        empty=unread.empty,
        unreadable=unread.unreadable,
    )
    result.save(files.result)
    return result


def _described(benchmark: Benchmark, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says about model, budget and machine, from the settings file of its answers."""
    identity, about = stored["identity"], stored["about"]
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "model": about["model"],
        "compression": about["compression"],
        "compression_config": identity["compression"],
        "versions": about["versions"],
        "device": about["device"],
        "seed": identity["seed"],
        "settings": about["settings"],
    }


def _digest(answers: Iterable[Answer]) -> str:
    """SHA-256 of the questions that were answered and of their answers."""
    lines = [[answer.question.question_id, answer.question.recorded_prompt, answer.text] for answer in answers]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _judged_before(files: BenchmarkFiles, digest: str) -> Result | None:
    """The result file that is there, if it holds a judge's numbers on these answers."""
    if not files.result.is_file():
        return None
    try:
        result = Result.load(files.result)
    except ValueError:  # cut short or of another version; it is written anew
        return None
    return result if result.judge is not None and result.answers == digest else None


def _scores(
    files: BenchmarkFiles, benchmark: Benchmark, root: Path, judge: Judge | None, answers: Sequence[Answer]
) -> Scores:
    if not answers:
        return Scores(None)
    if judge is not None and isinstance(benchmark, JudgedBenchmark):
        return benchmark.judged(root, answers, judge, files.reviews)
    return benchmark.score(root, answers)


def _unread(benchmark: Benchmark, answers: Sequence[Answer], scores: Scores) -> Unread:
    """Answers that nothing was read from; where a judge graded, its grades are what has to be read."""
    counted = Unread.count(answer.text for answer in answers)
    if scores.counted is not None:
        return replace(counted, unreadable=len(answers) - scores.counted)
    unreadable = sum(bool(answer.text.strip()) and not benchmark.reads(answer) for answer in answers)
    return replace(counted, unreadable=unreadable)


def _submit(files: BenchmarkFiles, benchmark: Benchmark, root: Path, answers: Sequence[Answer]) -> list[str]:
    """Write what a server takes; returns why it could not be, if so."""
    try:
        if answers:
            benchmark.write_submission(root, answers, files.submission)
    except (ValueError, OSError) as error:
        return [f"No submission was written: {error}"]
    return []


def _took(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean visual tokens a layer and total seconds, from the metadata of answer lines; None where none has any."""
    metadata = [line.get("metadata") or {} for line in lines]
    tokens = [entry["visual_tokens"] for entry in metadata if entry.get("visual_tokens") is not None]
    seconds = [entry["seconds"] for entry in metadata if entry.get("seconds") is not None]
    return {"average_tokens": mean(tokens) if tokens else None, "seconds": sum(seconds) if seconds else None}


def choose_judge(asked: bool | None, benchmarks: Iterable[Benchmark]) -> Judge | None:
    """The judge, if one is asked for or the environment names one, and a benchmark needs it.

    Args:
        asked: whether a judge is asked for; None leaves it to the environment.
        benchmarks: benchmarks to be scored.

    Raises:
        ValueError: if the environment does not describe it rightly.
    """
    if not any(isinstance(benchmark, JudgedBenchmark) for benchmark in benchmarks):
        return None
    if not (judge_is_configured() if asked is None else asked):
        return None
    return Judge.from_environment()


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    """`--judge` and `--no-judge`."""
    parser.add_argument(
        "--judge",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"grade by a language model what needs it (default: if {URL_VARIABLE} or {KEY_VARIABLE} is set)",
    )


def summary_line(result: Result) -> str:
    """A result in one line for the terminal, with its notes below."""
    headline = "no number here" if result.headline is None else f"{result.headline:.2f}"
    tokens = "" if result.average_tokens is None else f", {result.average_tokens:.2f} visual tokens on average"
    counts = (("empty", result.empty), ("unreadable", result.unreadable))
    unread = "".join(f", {count} {name}" for name, count in counts if count)
    notes = "".join(f"\n         {note}" for note in result.notes)
    asked = f"{result.num_answered} of {result.num_questions} questions"
    return f"{result.title:8} {headline}  ({asked}{unread}{tokens}){notes}"


def write_headlines(results: Iterable[Result], path: Path) -> None:
    """Write an object with the headlines of complete benchmarks, under the columns of the paper's tables.

    Those that lack answers are named on standard error.
    """
    results = [result for result in results if result.headline is not None]
    headlines = {result.title: result.headline for result in results if result.complete}
    partial = [result.title for result in results if not result.complete]
    if partial:
        print(f"{path} leaves out {', '.join(partial)}, where answers are missing.", file=sys.stderr)
    write_json(path, headlines, indent=2)
