"""Let a language model grade Video-LLaVA's answer files, with Video-LLaVA's flags.

    python -m llava.eval.eval_video_qa --pred_path merge.jsonl --output_dir graded --output_json results.json

A line of the answer file is `{"id", "question", "answer", "pred"}`; `llava.eval.run` writes such files, too, as
`msvd.submission.jsonl` and so on. Verdicts are kept in `OUTPUT_DIR/verdicts.jsonl` as they come, and a second call goes
on from there. LLAVA_JUDGE_URL, LLAVA_JUDGE_KEY and LLAVA_JUDGE_MODEL name the judge.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.common.json_files import write_json
from llava.common.number_flags import MOST_PROCESSES, count
from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_READ, FOLDER_TO_WRITE, OUTPUT
from llava.common.program import as_program
from llava.eval.benchmarks.answer_lines import read_answer_lines
from llava.eval.benchmarks.video_qa import ANSWER_FIELDS, MAX_TOKENS, REMINDER, match_request, match_values, read_match
from llava.eval.judging.chat_api import KEY_VARIABLE, URL_VARIABLE
from llava.eval.judging.judge import WORKERS_VARIABLE, Judge, Verdict, grades_of
from llava.eval.runner.exit_status import exit_status
from llava.eval.runner.result_files import result_file
from llava.eval.scoring.unread import Unread

VERDICTS = "verdicts.jsonl"
_WANTED = (
    '--pred_path takes Video-LLaVA\'s answer file, a {"id", "question", "answer", "pred"} a line, such as the '
    "msvd.submission.jsonl that llava.eval.run writes."
)


def grade(options: argparse.Namespace, environment: Mapping[str, str] | None = None) -> list[Verdict]:
    """Grade an answer file and write the verdicts together; see the command line for `options`.

    Raises:
        ValueError: if the file is missing or does not fit, or the judge cannot be asked.
    """
    together_file = result_file(options.output_json, "--output_json")
    answers = read_predictions(options.pred_path)
    written = {"--output_json": options.output_json, "the verdicts in --output_dir": options.output_dir / VERDICTS}
    require_apart(written, [options.pred_path])
    flags = {URL_VARIABLE: options.api_base, KEY_VARIABLE: options.api_key, WORKERS_VARIABLE: options.num_tasks}
    outside = os.environ if environment is None else environment
    judge = Judge.from_environment(dict(outside) | {name: str(value) for name, value in flags.items() if value})
    requests = [match_request(name, line["question"], line["answer"], line["pred"]) for name, line in answers.items()]
    verdicts = judge.grade(requests, read_match, options.output_dir / VERDICTS, REMINDER, MAX_TOKENS)
    together = {
        name: [verdict.grade, {"q": line["question"], "a": line["answer"], "pred": line["pred"]}]
        for (name, line), verdict in zip(answers.items(), verdicts, strict=True)
        if verdict.grade is not None
    }
    write_json(together_file, together, end="")
    return verdicts


def read_predictions(path: Path) -> dict[str, dict[str, str]]:
    """The lines of an answer file by id.

    Raises:
        ValueError: if it is missing or empty, a line lacks a field, or an id comes twice.
    """
    answers: dict[str, dict[str, str]] = {}
    for number, line in enumerate(read_answer_lines(path, _WANTED), start=1):
        missing = [name for name in ANSWER_FIELDS if name not in line]
        if missing:
            raise ValueError(
                f"{path}, answer {number} has no field {missing[0]!r}, only {', '.join(line) or 'none'}; {_WANTED}"
            )
        name = str(line["id"])
        if name in answers:
            raise ValueError(f"{path} answers question {name!r} twice; leave one of the answers.")
        answers[name] = {field: "" if line[field] is None else str(line[field]) for field in ANSWER_FIELDS[1:]}
    return answers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    verdicts = grade(options)
    empty = Unread.count(line["pred"] for line in read_predictions(options.pred_path).values()).empty
    grades = grades_of(verdicts)
    values = match_values(grades)
    yes = sum(grade["pred"] == "yes" for grade in grades)
    print("All evaluation completed!")
    print("Yes count:", yes)
    print("No count:", len(grades) - yes)
    print("Accuracy:", values["accuracy"] / 100)
    print("Average score:", values["mean_score"])
    if len(grades) < len(verdicts):
        print("Ungraded and left out:", len(verdicts) - len(grades))
    if empty:
        print("Empty answers:", empty)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_video_qa", description="Let a language model grade answers about videos."
    )
    add: Any = parser.add_argument
    add("--pred_path", "--pred-path", type=FILE_TO_READ, required=True, help="answers, JSON lines")
    add("--output_dir", "--output-dir", type=FOLDER_TO_WRITE, required=True, help="folder for the verdicts")
    add("--output_json", "--output-json", type=OUTPUT, required=True, help="file for all verdicts together")
    add(
        "--num_tasks",
        "--num-tasks",
        type=count(1, MOST_PROCESSES),
        help=f"requests under way at once (default: {WORKERS_VARIABLE}, or 8)",
    )
    add("--api_key", "--api-key", help=f"better given as {KEY_VARIABLE}: others can read your command line")
    add("--api_base", "--api-base", help=f"address of the judge (default: {URL_VARIABLE})")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
