"""Score answers to POPE, with LLaVA's flags and printed lines, and the average F1 at the end.

    python -m llava.eval.eval_pope --annotation-dir pope/coco --question-file pope/llava_pope_test.jsonl \
        --result-file answers.jsonl

Labels belong to questions by their place in the question file, so an answer file may lack some or have another order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import mean

from llava.common.path_flags import FILE_TO_READ, FOLDER_TO_READ
from llava.common.program import as_program
from llava.common.shown import shown
from llava.eval.benchmarks.answer_lines import answers_by_id
from llava.eval.benchmarks.pope import POPE, pope_splits, read_pope_questions, split_names
from llava.eval.runner.exit_status import exit_status
from llava.eval.scoring.unread import Unread
from llava.eval.scoring.yes_no import Confusion, pope_reads


def report(split: str, counts: Confusion) -> str:
    """What LLaVA prints about one split.

    Args:
        split: its name.
        counts: counts of its answers.
    """
    shares = (counts.f1, counts.accuracy, counts.precision, counts.recall, counts.yes_ratio)
    return "\n".join(
        (
            f"Category: {split}, # samples: {counts.total}",
            "TP\tFP\tTN\tFN\t",
            f"{counts.true_positive}\t{counts.false_positive}\t{counts.true_negative}\t{counts.false_negative}",
            f"Accuracy: {counts.accuracy}",
            f"Precision: {counts.precision}",
            f"Recall: {counts.recall}",
            f"F1 score: {counts.f1}",
            f"Yes ratio: {counts.yes_ratio}",
            ", ".join(f"{share:.3f}" for share in shares),
            "=" * 36,
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m llava.eval.eval_pope", description="Score POPE.")
    parser.add_argument("--annotation-dir", type=FOLDER_TO_READ, required=True, help="folder of coco_pope_<split>.json")
    parser.add_argument("--question-file", type=FILE_TO_READ, required=True, help="llava_pope_test.jsonl")
    parser.add_argument("--result-file", type=FILE_TO_READ, required=True, help="answers, JSON lines")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options), kept="")


def _run(options: argparse.Namespace) -> int:
    present = split_names(options.annotation_dir)
    questions = read_pope_questions(options.question_file, options.annotation_dir)
    given = answers_by_id(options.result_file)
    answers = [
        (question, str(given[str(question.question_id)]["text"]))
        for question in questions
        if str(question.question_id) in given and question.facts["category"] in present
    ]
    if not answers:
        raise ValueError(
            f"{options.result_file} answers no question of {options.question_file} in the splits {', '.join(present)}; "
            "give the answers to these questions."
        )
    unknown = list(given.keys() - {str(question.question_id) for question in questions})
    if unknown:
        raise ValueError(
            f"{options.question_file} lacks {len(unknown)} of {len(given)} questions that were answered, such as "
            f"{shown(unknown[0])[1:-1]}; give the file of the questions that were asked."
        )
    counts = pope_splits(options.annotation_dir, answers)
    for split, confusion in counts.items():
        print(report(split, confusion))
    print(f"Average F1: {mean(confusion.f1 for confusion in counts.values())}")
    Unread.count((text for _, text in answers), pope_reads).tell(POPE.unread_as)
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
