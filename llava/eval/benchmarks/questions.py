"""Questions of a benchmark and answers of a model, as runner, benchmarks and scorers exchange them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Picture = Path | bytes
"""An image: a file, or the content of one (MMBench carries its images inside the question file)."""

AnswerKey = tuple[str, str, int]
"""What answers belong to: question id, prompt, and how many equal ones stand before it in the file."""


@dataclass(frozen=True)
class Question:
    """One question as a benchmark asks it.

    Attributes:
        question_id: id in the question file; several questions may share one (MME asks twice an image).
        text: what the model is asked, without `<image>` and without conversation template.
        images: shown in front of the text, in this order; empty for a question about text alone.
        video: file or folder of frames, for questions about a video; `images` is empty then.
        prompt: the `prompt` field of the answer file, where it differs from `text`.
        fields: what an answer line of this benchmark carries besides LLaVA's own fields, e.g. MMBench's `round_id`.
        facts: what scoring needs: the right answer, a category.
    """

    question_id: int | str
    text: str
    images: tuple[Picture, ...] = ()
    video: Path | None = None
    prompt: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recorded_prompt(self) -> str:
        """The `prompt` field of its answer line."""
        return self.text if self.prompt is None else self.prompt


def question_keys(questions: Iterable[Question]) -> list[AnswerKey]:
    """The key of each question, in order; no two are equal."""
    return list(numbered((str(question.question_id), question.recorded_prompt) for question in questions))


def numbered(pairs: Iterable[tuple[str, str]]) -> Iterator[AnswerKey]:
    """Pairs of question id and prompt, each with how many equal ones stand before it."""
    seen: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        yield (*pair, seen[pair])
        seen[pair] += 1


@dataclass(frozen=True)
class Answer:
    """A question with the text that a model answered."""

    question: Question
    text: str


def texts_by_id(answers: Iterable[Answer]) -> dict[str, str]:
    """Texts of answers by question id as text, in order, for files that hold one answer for each id.

    Raises:
        ValueError: if an id comes twice.
    """
    texts: dict[str, str] = {}
    for answer in answers:
        name = str(answer.question.question_id)
        if name in texts:
            raise ValueError(f"The question id {name!r} comes twice; here one answer stands for each id.")
        texts[name] = answer.text
    return texts
