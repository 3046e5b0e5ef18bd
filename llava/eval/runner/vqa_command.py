"""What LLaVA's commands `model_vqa*` share: their flags, their answer file, and the answering of `llava.eval.run`."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from llava.common.number_flags import require_at_least
from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_READ, FOLDER_OR_NONE, as_text
from llava.eval.benchmarks.questions import Question
from llava.eval.benchmarks.reading import read_questions
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.answer_settings import SETTINGS_SUFFIX, OtherSettingsError
from llava.eval.runner.exit_status import exit_status, tell
from llava.eval.runner.flags import add_batch_flags, add_compression_flags, add_generation_flags, check_options
from llava.eval.runner.from_flags import devices_of, evaluated_model, generation_of, loader_workers_of, workers_of
from llava.eval.runner.jobs import Job
from llava.eval.runner.result_files import result_file
from llava.inference.loading_flags import add_loading_flags

Item = TypeVar("Item")
Reader = Callable[[argparse.Namespace], Sequence[Question]]
"""Makes the questions of the chunk that the flags ask for."""


def vqa_parser(
    prog: str, description: str, question_file: str, conv_mode: str, new_tokens: int
) -> argparse.ArgumentParser:
    """LLaVA's flags, and those for batches and budgets.

    Args:
        prog: name of the module.
        description: description of the command.
        question_file, conv_mode, new_tokens: where the flags are not given.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    add_loading_flags(parser)
    parser.add_argument(
        "--image-folder", "--image_folder", type=FOLDER_OR_NONE, default="", help="that image names are relative to"
    )
    parser.add_argument(
        "--question-file",
        "--question_file",
        type=as_text(FILE_TO_READ),
        default=question_file,
        help=f"(default: {question_file})",
    )
    parser.add_argument("--answers-file", "--answers_file", default="answer.jsonl", help="(default: answer.jsonl)")
    parser.add_argument("--conv-mode", "--conv_mode", help=f"(default: that of training, or {conv_mode})")
    parser.set_defaults(usual_conv_mode=conv_mode)
    parser.add_argument("--num-chunks", "--num_chunks", type=int, default=1, help="parts of the questions (default: 1)")
    parser.add_argument("--chunk-idx", "--chunk_idx", type=int, default=0, help="the part to answer (default: 0)")
    add_generation_flags(parser, temperature=0.2, max_new_tokens=new_tokens)
    add_compression_flags(parser)
    add_batch_flags(parser, batch_size=1)
    parser.add_argument("--fresh", action="store_true", help="remove former answers and start anew")
    return parser


def choice_parser(prog: str, description: str, question_file: str, conv_mode: str) -> argparse.ArgumentParser:
    """The parser of `vqa_parser`, for questions with options."""
    parser = vqa_parser(prog, description, question_file, conv_mode, 1024)
    parser.add_argument(
        "--single-pred-prompt", "--single_pred_prompt", action="store_true", help="ask for the option's letter alone"
    )
    return parser


def chunk(items: Sequence[Item], count: int, number: int) -> Sequence[Item]:
    """One of `count` runs of consecutive items; as in LLaVA all have the same size, and the last ones may be empty.

    Raises:
        ValueError: if there is no such run.
    """
    require_at_least("num-chunks", count, 1)
    if not 0 <= number < count:
        raise ValueError(f"--chunk-idx is {number}, but there are {count} chunks; give 0 to {count - 1}.")
    size = math.ceil(len(items) / count)
    return items[number * size : (number + 1) * size]


def question_path(options: argparse.Namespace) -> Path:
    """The question file.

    Raises:
        ValueError: if it is not there.
    """
    path = Path(options.question_file)
    if not path.is_file():
        raise ValueError(f"There is no question file {str(path)!r}; give it as --question-file.")
    return path


def chunk_of_questions(options: argparse.Namespace) -> Sequence[Question]:
    """The questions of a chunk of one of LLaVA's question files; those without an image are about text.

    Raises:
        ValueError: if the file or a field is missing, or there is no such chunk.
    """
    questions = read_questions(question_path(options), Path(options.image_folder), "mmvet", about_text=True)
    return chunk(questions, options.num_chunks, options.chunk_idx)


def run_command(options: argparse.Namespace, read: Reader) -> int:
    """Answer the questions of a file; the same command goes on where it stopped.

    Where LLaVA writes over an answer file, one that was given under other settings is set aside as `<name>.former`.

    Args:
        options: options of `vqa_parser`.
        read: makes the questions.

    Returns:
        exit status: 0; 1 if questions have no answer or memory ran out; 2 for wrong input.
    """
    return exit_status(lambda: _answer(options, read))


def _answer(options: argparse.Namespace, read: Reader) -> int:
    check_options(options)
    answers = AnswerFile(result_file(options.answers_file, "--answers-file"))
    written = {
        "--answers-file": options.answers_file,
        f"the {SETTINGS_SUFFIX} beside --answers-file": Path(options.answers_file).with_suffix(SETTINGS_SUFFIX),
    }
    require_apart(written, [options.question_file, options.model_path, options.model_base, options.compression])
    with answers.locked():
        evaluated = evaluated_model(options)
        job = Job(
            title=answers.path.name,
            evaluated=evaluated,
            generation=generation_of(options, options.max_new_tokens),
            questions=read(options),
            loader_workers=loader_workers_of(options),
            answers=answers,
            settings=answers.path.with_suffix(SETTINGS_SUFFIX),
            with_metadata=False,
            hint="--fresh removes these answers and starts anew.",
        )
        devices = devices_of(options)
        _open(job, options.fresh)
        if job.left:
            with workers_of(evaluated.spec, devices) as workers:
                job.answer(workers, options.batch_size)
        answers.path.touch()
    job.report_problems()
    return int(bool(job.problems))


def _open(job: Job, fresh: bool) -> None:
    """Open a job, where need be after setting former answers aside."""
    if fresh and job.answers.path.exists() and not job.settings.exists():
        former = job.answers.set_aside()
        tell(f"{job.answers.path} was not written by this command; it is kept as {former}.")
    try:
        job.open(fresh)
    except OtherSettingsError as error:
        former = job.answers.set_aside()
        if job.settings.exists():
            os.replace(job.settings, former.with_name(f"{former.name}{SETTINGS_SUFFIX}"))
        tell(
            f"The answers in {job.answers.path} do not belong to this command ({error.reason}); they are kept in "
            f"{former}, and all questions are answered anew."
        )
        job.open(fresh)
