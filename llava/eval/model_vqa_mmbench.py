"""LLaVA's command for MMBench.

python -m llava.eval.model_vqa_mmbench --model-path M --question-file mmbench_dev_20230712.tsv --answers-file A.jsonl \
    --single-pred-prompt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.common.program import as_program
from llava.eval.benchmarks.mmbench import SUFFIXES, rotated, table_questions
from llava.eval.benchmarks.questions import Question
from llava.eval.runner.vqa_command import choice_parser, chunk, question_path, run_command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = choice_parser(
        "llava.eval.model_vqa_mmbench", "Answer the questions of MMBench.", "tables/question.jsonl", "llava_v1"
    )
    words.add_argument(
        "--all-rounds", "--all_rounds", action="store_true", help="ask under every rotation of the options"
    )
    words.add_argument("--lang", default="en", choices=sorted(SUFFIXES), help="of that request (default: en)")
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_command(parser().parse_args(arguments), _questions)


def _questions(options: argparse.Namespace) -> Sequence[Question]:
    suffix = SUFFIXES[options.lang] if options.single_pred_prompt else None
    chosen = chunk(table_questions(question_path(options), suffix), options.num_chunks, options.chunk_idx)
    return [turn for question in chosen for turn in rotated(question, suffix)] if options.all_rounds else chosen


if __name__ == "__main__":
    sys.exit(as_program(main))
