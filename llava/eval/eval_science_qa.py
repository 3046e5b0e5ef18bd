"""Score the answers of `llava.eval.model_vqa_science`, with LLaVA's flags, files and printed line.

    python -m llava.eval.eval_science_qa --base-dir playground/data/eval/scienceqa --result-file answers.jsonl \
        --output-file output.jsonl --output-result result.json

A problem of the split without an answer counts as wrong, and as one without an image, as in LLaVA.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llava.common.json_files import write_json
from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_READ, FOLDER_TO_READ, OUTPUT
from llava.common.program import as_program
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.benchmarks.answer_lines import answers_by_id
from llava.eval.benchmarks.sqa import FAILED, OPTIONS, ScienceQA, option_index, read_letter, read_problems
from llava.eval.runner.exit_status import exit_status
from llava.eval.scoring.unread import Unread


def analyse(
    problems: Mapping[str, Mapping[str, Any]], given: Mapping[str, Mapping[str, Any]], options: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The two reports that LLaVA writes.

    Args:
        problems: problems of a split, at least one, by id.
        given: lines of an answer file, by question id.
        options: letters.

    Returns:
        The analysis of each answer under `correct` and `incorrect`, and the results by problem with `acc` in per cent.
    """
    unanswered = {"text": FAILED, "prompt": "Unknown"}
    analyses: dict[str, list[dict[str, Any]]] = {"correct": [], "incorrect": []}
    chosen, outputs = {}, {}
    for number, problem in problems.items():
        line = given.get(number, unanswered)
        text = str(line["text"])
        letter = read_letter(text, options)
        chosen[number], outputs[number] = option_index(letter, len(problem["choices"]), options), text
        right = chosen[number] == problem["answer"]
        analyses["correct" if right else "incorrect"].append(
            {
                "question_id": number,
                "parsed_ans": letter,
                "ground_truth": options[problem["answer"]],
                "question": line["prompt"],
                "pred": text,
                "is_multimodal": DEFAULT_IMAGE_TOKEN in line["prompt"],
            }
        )
    correct, count = len(analyses["correct"]), len(problems)
    results = {"acc": 100 * correct / count, "correct": correct, "count": count, "results": chosen, "outputs": outputs}
    return analyses, results


def summary(analyses: Mapping[str, Sequence[Mapping[str, Any]]], results: Mapping[str, Any]) -> str:
    """The line that LLaVA prints; without a question with an image, its share is "n/a"."""
    right, wrong = (
        sum(analysis["is_multimodal"] for analysis in analyses[verdict]) for verdict in ("correct", "incorrect")
    )
    share = f"{100 * right / (right + wrong):.2f}%" if right + wrong else "n/a"
    return (
        f"Total: {results['count']}, Correct: {results['correct']}, Accuracy: {results['acc']:.2f}%, "
        f"IMG-Accuracy: {share}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m llava.eval.eval_science_qa", description="Score ScienceQA.")
    parser.add_argument(
        "--base-dir", type=FOLDER_TO_READ, required=True, help="folder of problems.json and pid_splits.json"
    )
    parser.add_argument("--result-file", type=FILE_TO_READ, required=True, help="answers, JSON lines")
    parser.add_argument("--output-file", type=OUTPUT, help="analysis to write, JSON")
    parser.add_argument("--output-result", type=OUTPUT, help="results to write, JSON")
    parser.add_argument("--split", default="test", help="key of pid_splits.json (default: test)")
    parser.add_argument("--options", type=list, default=list(OPTIONS), help="letters (default: ABCDE)")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options), kept="")


def _run(options: argparse.Namespace) -> int:
    require_apart(
        {"--output-file": options.output_file, "--output-result": options.output_result},
        [options.result_file, options.base_dir / "problems.json", options.base_dir / "pid_splits.json"],
    )
    problems = read_problems(options.base_dir, options.split, ScienceQA.name)
    most = max(problem["answer"] for problem in problems.values()) + 1
    if most > len(options.options):
        raise ValueError(f"--options has {len(options.options)} letters, but right answers need {most}; give more.")
    given = answers_by_id(options.result_file)
    analyses, results = analyse(problems, given, options.options)
    unread = _unread(problems, given, options.options)
    for path, content in ((options.output_file, analyses), (options.output_result, results)):
        if path is not None:
            write_json(path, content, indent=2, end="")
    print(summary(analyses, results))
    unread.tell(ScienceQA.unread_as)
    return 0


def _unread(
    problems: Mapping[str, Mapping[str, Any]], given: Mapping[str, Mapping[str, Any]], options: Sequence[str]
) -> Unread:
    """Answers that say nothing; to these belong letters that their question does not offer."""
    texts = {number: str(line["text"]) for number, line in given.items() if number in problems}
    counted = Unread.count(texts.values())
    offers = {number: len(problem["choices"]) for number, problem in problems.items()}
    unreadable = sum(
        bool(text.strip()) and option_index(read_letter(text, options), offers[number], options) < 0
        for number, text in texts.items()
    )
    return replace(counted, unreadable=unreadable)


if __name__ == "__main__":
    sys.exit(as_program(main))
