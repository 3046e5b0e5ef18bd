"""Let a language model compare two files of answers to LLaVA-Bench, with LLaVA's flags.

    python -m llava.eval.eval_gpt_review_bench --question questions.jsonl --context context.jsonl \
        --rule llava/eval/table/rule.json --answer-list answers_gpt4.jsonl answers.jsonl --output review.jsonl

LLAVA_JUDGE_URL, LLAVA_JUDGE_KEY and LLAVA_JUDGE_MODEL name the judge. Reviews that the output file holds are not asked
for again. Unlike LLaVA's command it asks at temperature 0, and finds answers by question id instead of by line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from llava.common.number_flags import count
from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_READ, OUTPUT
from llava.common.program import as_program
from llava.eval.benchmarks.llava_bench import (
    MAX_TOKENS,
    REMINDER,
    LLaVABench,
    read_captions,
    read_references,
    read_two_scores,
    reference_of,
    review_request,
    shipped_rules,
)
from llava.eval.benchmarks.reading import (
    need_id,
    need_question,
    read_json_as,
    read_json_lines,
    require_fields,
    require_some,
)
from llava.eval.judging.judge import Judge, Verdict
from llava.eval.runner.exit_status import exit_status
from llava.eval.runner.result_files import result_file
from llava.eval.scoring.unread import Unread


def review(options: argparse.Namespace, environment: Mapping[str, str] | None = None) -> list[Verdict]:
    """Grade all pairs of answers; see the command line for `options`.

    Raises:
        ValueError: if a file is missing or does not fit, or the judge cannot be asked.
    """
    if len(options.answer_list) != 2:
        raise ValueError(f"--answer-list names {len(options.answer_list)} files; give two, the reference first.")
    result_file(options.output, "--output")
    require_apart(
        {"--output": options.output},
        [options.question, options.context, options.rule, *options.answer_list],
    )
    judge = Judge.from_environment(environment)
    rules: Mapping[str, Any] = read_json_as(dict, options.rule, LLaVABench.name) if options.rule else shipped_rules()
    captions = read_captions(options.context)
    first, second = (read_references(path) for path in options.answer_list)
    requests = []
    questions = require_some(read_json_lines(options.question, LLaVABench.name), options.question)
    for number, question in enumerate(questions, start=1):
        place = f"{options.question}, line {number}"
        need_question(question, "text", place)
        require_fields(question, place)
        identity = need_id(question, "question_id", place)
        requests.append(
            review_request(
                number,
                question,
                captions,
                rules,
                reference_of(first, identity, options.answer_list[0]),
                reference_of(second, identity, options.answer_list[1]),
            )
        )
    return judge.grade(requests, read_two_scores, options.output, REMINDER, options.max_tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    verdicts = review(options)
    ungraded = sum(verdict.grade is None for verdict in verdicts)
    print(f"{len(verdicts)} reviews are in {options.output}, {ungraded} of them without two scores.")
    for path in options.answer_list:
        texts = [str(answer["text"]) for answer in read_references(path).values()]
        empty = Unread.count(texts).empty
        if empty:
            print(f"{empty} of {len(texts)} answers in {path} are empty.", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_gpt_review_bench", description="Let a language model compare two answers."
    )
    parser.add_argument("-q", "--question", type=FILE_TO_READ, required=True, help="questions.jsonl of LLaVA-Bench")
    parser.add_argument("-c", "--context", type=FILE_TO_READ, required=True, help="context.jsonl of LLaVA-Bench")
    parser.add_argument(
        "-a", "--answer-list", type=FILE_TO_READ, nargs="+", required=True, help="two files, reference first"
    )
    parser.add_argument(
        "-r", "--rule", type=FILE_TO_READ, help="roles and requests by category (default: this project's)"
    )
    parser.add_argument("-o", "--output", type=OUTPUT, required=True, help="JSON lines of reviews, appended to")
    parser.add_argument("--max-tokens", type=count(), default=MAX_TOKENS, help="longest review (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
