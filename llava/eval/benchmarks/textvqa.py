"""TextVQA: questions about text in images, with OCR tokens in the prompt.

Files under `textvqa/`, as LLaVA has them: `llava_textvqa_val_v051_ocr.jsonl` (questions), `TextVQA_0.5.1_val.json`
(people's answers) and `train_images/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.common.shown import shown
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import need_list, need_text, read_json_as, read_questions
from llava.eval.scoring.m4c import m4c_accuracy
from llava.eval.scoring.scores import Scores, per_cent
from llava.eval.scoring.vqa_normalise import evalai_answer

Annotations = Mapping[tuple[str, str], Sequence[str]]
"""Ten people's answers by image and question in lower case."""

_FOLDER = "textvqa"
_OLD_PROMPT = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


class TextVQA(Benchmark):
    """M4C's soft accuracy over ten people's answers, in per cent."""

    name = "textvqa"
    title = "VQA-T"

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`."""
        folder = root / _FOLDER
        return read_questions(folder / "llava_textvqa_val_v051_ocr.jsonl", folder / "train_images", self.name)

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`."""
        path = root / _FOLDER / "TextVQA_0.5.1_val.json"
        lines = [(answer.question.question_id, answer.question.recorded_prompt, answer.text) for answer in answers]
        accuracy = textvqa_accuracy(read_annotations(path), lines, path)
        return Scores(accuracy, {"accuracy": accuracy})

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`; of marks and articles alone nothing is left to compare."""
        return bool(evalai_answer(answer.text))


def read_annotations(path: Path) -> Annotations:
    """The annotations of TextVQA.

    Raises:
        ValueError: if the file is missing or lacks something.
    """
    data = read_json_as(dict, path, TextVQA.name)
    annotations = {}
    for number, record in enumerate(need_list(data, "data", str(path)), start=1):
        place = f"{path}, question {number}"
        key = (need_text(record, "image_id", place), need_text(record, "question", place).lower())
        answers = need_list(record, "answers", place)
        annotations[key] = [need_text({"answers": answer}, "answers", place) for answer in answers]
    return annotations


def textvqa_accuracy(annotations: Annotations, lines: Iterable[tuple[Any, str, str]], place: Path) -> float:
    """TextVQA's accuracy in per cent.

    Args:
        annotations: what `read_annotations` gives.
        lines: image, prompt and answer; at least one.
        place: file of the annotations, for errors.

    Raises:
        ValueError: if a prompt has none of LLaVA's forms, or its question is not annotated.
    """
    shares = []
    for image, prompt, text in lines:
        key = (str(image), question_of_prompt(prompt))
        if key not in annotations:
            raise ValueError(
                f"{place} has no question {shown(key[1])} about image {shown(key[0])[1:-1]}; the questions that "
                "were answered and this file do not belong together, download both again."
            )
        try:
            shares.append(m4c_accuracy(text, annotations[key]))
        except ValueError as error:
            raise ValueError(f"{place}, about image {shown(key[0])[1:-1]}: {error}") from error
    return per_cent(shares)


def question_of_prompt(prompt: str) -> str:
    """The question, in lower case, that a prompt of LLaVA's TextVQA files asks.

    Three lines with "Reference OCR token: ": the second if the first has the tokens, else the first. Two lines: the
    first. One that begins with "OCR tokens: ": what stands between "Question: " and " Short answer:".

    Raises:
        ValueError: if the prompt has none of these forms.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        old = _OLD_PROMPT.search(prompt)
        if old is not None:
            return old.group(1).lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ValueError(
        f"The prompt {shown(prompt)} has none of the forms of LLaVA's TextVQA questions: the question and a request on "
        "two lines, with or without a line 'Reference OCR token: ...', or 'OCR tokens: ... Question: ... Short "
        "answer:'. Answer the questions of llava_textvqa_val_v051_ocr.jsonl."
    )
