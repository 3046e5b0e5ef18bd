"""LLaVA's command for ScienceQA.

python -m llava.eval.model_vqa_science --model-path M --question-file llava_test_CQM-A.json --image-folder DIR \
    --answers-file A.jsonl --single-pred-prompt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common.program import as_program
from llava.eval.benchmarks.questions import Question
from llava.eval.benchmarks.reading import read_json_as
from llava.eval.benchmarks.sqa import LETTER_PROMPT, science_questions
from llava.eval.runner.vqa_command import choice_parser, chunk, question_path, run_command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = choice_parser(
        "llava.eval.model_vqa_science", "Answer the questions of ScienceQA.", "tables/question.json", "llava_v0"
    )
    words.add_argument("--answer-prompter", "--answer_prompter", action="store_true", help="accepted, without effect")
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_command(parser().parse_args(arguments), _questions)


def _questions(options: argparse.Namespace) -> Sequence[Question]:
    path = question_path(options)
    records = read_json_as(list, path, "sqa")
    suffix = LETTER_PROMPT if options.single_pred_prompt else None
    questions = science_questions(records, Path(options.image_folder), str(path), suffix)
    return chunk(questions, options.num_chunks, options.chunk_idx)


if __name__ == "__main__":
    sys.exit(as_program(main))
