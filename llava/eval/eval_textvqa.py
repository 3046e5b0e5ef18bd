"""Score answers to TextVQA, with LLaVA's flags and printed lines.

    python -m llava.eval.eval_textvqa --annotation-file TextVQA_0.5.1_val.json --result-file answers.jsonl

`--result-dir` scores every `.jsonl` file of a folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common.path_flags import FILE_TO_READ, FOLDER_TO_READ
from llava.common.program import as_program
from llava.common.shown import say
from llava.eval.benchmarks.answer_lines import read_answers
from llava.eval.benchmarks.textvqa import Annotations, TextVQA, read_annotations, textvqa_accuracy
from llava.eval.runner.exit_status import exit_status
from llava.eval.scoring.unread import Unread
from llava.eval.scoring.vqa_normalise import evalai_answer


def eval_single(annotations: Annotations, annotation_file: Path, result_file: Path) -> float:
    """Score one answer file, print what LLaVA prints, and return the accuracy in per cent.

    Args:
        annotations: annotations of TextVQA.
        annotation_file: where they come from, for errors.
        result_file: answers, JSON lines.

    Raises:
        ValueError: if the file is missing, holds no answer, or an answer does not fit.
    """
    lines = read_answers(result_file)
    answers = [(line["question_id"], str(line["prompt"]), str(line["text"])) for line in lines]
    try:
        accuracy = textvqa_accuracy(annotations, answers, annotation_file)
    except ValueError as error:
        raise ValueError(f"{result_file}: {error}") from error
    say(f"{result_file.stem}\nSamples: {len(lines)}\nAccuracy: {accuracy:.2f}%\n")
    Unread.count((text for _, _, text in answers), lambda text: bool(evalai_answer(text))).tell(TextVQA.unread_as)
    return accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m llava.eval.eval_textvqa", description="Score TextVQA.")
    parser.add_argument("--annotation-file", type=FILE_TO_READ, required=True, help="TextVQA_0.5.1_val.json")
    parser.add_argument("--result-file", type=FILE_TO_READ, help="answers, JSON lines")
    parser.add_argument("--result-dir", type=FOLDER_TO_READ, help="folder of answer files, each scored")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options), kept="")


def _run(options: argparse.Namespace) -> int:
    files = [options.result_file] if options.result_file is not None else []
    if options.result_dir is not None:
        if not options.result_dir.is_dir():
            raise ValueError(f"{options.result_dir} is not a folder; give the folder of the answer files.")
        files += sorted(options.result_dir.iterdir())
        if not any(path.suffix == ".jsonl" for path in files):
            raise ValueError(f"{options.result_dir} holds no answers (*.jsonl); give the folder of the answer files.")
    if not files:
        raise ValueError("There is nothing to score; give --result-file or --result-dir.")
    annotations = read_annotations(options.annotation_file)
    for path in files:
        if path.suffix == ".jsonl" or path == options.result_file:
            eval_single(annotations, options.annotation_file, path)
        else:
            say(f"Skipping {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(as_program(main))
