"""A benchmark of coloured squares, small enough to be answered in a second, and what runs of it are checked with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from llava.eval.benchmarks.base import Benchmark, JudgedBenchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import read_questions
from llava.eval.judging.judge import Judge
from llava.eval.scoring.scores import Scores

WORDS = ("red", "seven", "top left", "digit", "polite answers", "one word", "picture", "a green nine", "yellow four")


class Squares(Benchmark):
    """Scores the share of answers that are not empty."""

    name = "squares"
    title = "SQ"
    max_new_tokens = 6

    def questions(self, root: Path) -> list[Question]:
        return read_questions(root / "squares" / "questions.jsonl", root / "squares" / "images", self.name)

    def score(self, root: Path, answered: Sequence[Answer]) -> Scores:
        said = sum(bool(item.text) for item in answered)
        return Scores(100 * said / len(answered), {"said": float(said)}, ("Counted.",))

    def write_submission(self, root: Path, answered: Sequence[Answer], stem: Path) -> Path:
        path = stem.with_name(f"{stem.name}.txt")
        path.write_text("\n".join(str(item.question.question_id) for item in answered))
        return path


class JudgedSquares(Squares, JudgedBenchmark):
    """The judge gives every answer half, but none to the last."""

    name = "judged_squares"
    title = "JSQ"

    def judged(self, root: Path, answered: Sequence[Answer], judge: Judge, reviews: Path) -> Scores:
        if judge.api.model == "broken":
            raise ValueError("The judge cannot be reached.")
        reviews.write_text("".join(f"{item.question.question_id}\n" for item in answered))
        judged_by = {"answered_as": [f"{judge.api.model}-2026"], "temperature": 0}
        return Scores(50.0, counted=len(answered) - 1, judged_by=judged_by)


def write_squares(root: Path, count: int = 9) -> Path:
    """Questions of different length about squares; the second and third have the same number and text."""
    images = root / "squares" / "images"
    images.mkdir(parents=True)
    lines = []
    for number in range(count):
        Image.new("RGB", (30 + number % 7, 20), (27 * number % 256, 200 - 9 * number % 200, 60)).save(
            images / f"{number}.png"
        )
        text = "Is there " + " ".join(WORDS[: 1 + number * 4 % len(WORDS)]) + "?"
        lines.append({"question_id": number, "image": f"{number}.png", "text": text, "category": "default"})
    if count > 2:
        lines[2] = dict(lines[1])
    path = root / "squares" / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path: Path) -> list[str]:
    """The answers of a file, in its order."""
    return [line["text"] for line in read_lines(path)]
