"""LLaVA's command for questions with short answers, such as those of GQA, POPE and TextVQA.

python -m llava.eval.model_vqa_loader --model-path M --question-file Q.jsonl --image-folder DIR --answers-file A.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.common.program import as_program
from llava.eval.runner.vqa_command import chunk_of_questions, run_command, vqa_parser


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return vqa_parser(
        "llava.eval.model_vqa_loader",
        "Answer the questions of a file in short.",
        "tables/question.jsonl",
        "llava_v1",
        128,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_command(parser().parse_args(arguments), chunk_of_questions)


if __name__ == "__main__":
    sys.exit(as_program(main))
