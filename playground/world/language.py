"""What is said about a scene: captions, questions and answers.  Knows nothing of pixels.

Every answer repeats the reference before the value ("red three" rather than "three"), so that a small model
learns one step at a time: first what was asked about, then what stands there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
PLACES = ("top left", "top right", "bottom left", "bottom right")

Colour = Literal["red", "green", "blue", "yellow", "purple", "white"]
QuestionKind = Literal["colour", "place", "digit"]

#: How often each kind of question is asked: by colour, by place (both for the digit), by digit (for the colour).
KIND_SHARES: dict[QuestionKind, float] = {"colour": 0.4, "place": 0.4, "digit": 0.2}

QUESTION_FORMS: dict[QuestionKind, tuple[str, ...]] = {
    "colour": ("What digit is {}?", "Which digit is {}?", "What is the {} digit?"),
    "place": ("What digit is {}?", "Which digit is {}?", "What is the {} digit?"),
    "digit": ("What colour is the {}?", "Which colour is the {}?", "What is the colour of the {}?"),
}


@dataclass(frozen=True)
class Digit:
    """One digit of a scene as a speaker sees it: indices into `NUMBERS`, `COLOURS` and `PLACES`."""

    number: int
    colour: int
    place: int

    def word(self, kind: QuestionKind) -> str:
        """The word by which a question of `kind` refers to this digit."""
        if kind == "colour":
            return COLOURS[self.colour]
        return PLACES[self.place] if kind == "place" else NUMBERS[self.number]


@dataclass(frozen=True)
class Question:
    """A question about one digit of a scene and its only right answer."""

    kind: QuestionKind
    text: str
    answer: str


def describe(digits: Sequence[Digit]) -> str:
    """The caption of a scene, in reading order: "a red three top left, a blue five bottom right"."""
    ordered = sorted(digits, key=lambda digit: digit.place)
    return ", ".join(f"a {COLOURS[d.colour]} {NUMBERS[d.number]} {PLACES[d.place]}" for d in ordered)


def question_about(digit: Digit, kind: QuestionKind, rng: random.Random) -> Question:
    """One of the ways to ask about `digit` by its colour, its place, or its number."""
    reference = digit.word(kind)
    value = digit.word("colour" if kind == "digit" else "digit")
    return Question(kind, rng.choice(QUESTION_FORMS[kind]).format(reference), f"{reference} {value}")


def ask(digits: Sequence[Digit], count: int, rng: random.Random) -> list[Question]:
    """`count` different questions about a scene (fewer if there are not that many to ask)."""
    pairs = [(digit, kind) for digit in digits for kind in KIND_SHARES]
    # Weighted sampling without replacement: the largest u^(1/weight) win (Efraimidis & Spirakis 2006).
    pairs.sort(key=lambda pair: rng.random() ** (1.0 / KIND_SHARES[pair[1]]), reverse=True)
    return [question_about(digit, kind, rng) for digit, kind in pairs[:count]]
