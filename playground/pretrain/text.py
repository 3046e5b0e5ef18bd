"""The text that the language model learns from: scenes in words, and conversations about them.

Two forms of a scene are used.  In sentences it reads "a red three top left, ...".  As *slots* every phrase fills a
single position, the mean of its words' embeddings ("red" + "three" + "top" + "left"): what a projected image patch
will look like later, made from words alone.  No image is involved.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from playground.world.language import COLOURS, NUMBERS, PLACES, Digit, Question, ask, describe

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
END = "</s>"
#: Words of slots that show no digit; the backgrounds of later images will look like them.
FILLERS = ("photo", "sky", "stone", "cloth", "fur", "leaf", "star", "cup")


@dataclass(frozen=True)
class Conversation:
    """Text before and after the place of the scene; `answers` are spans of `after` to be learnt, with their end."""

    before: str
    after: str
    answers: tuple[tuple[int, int], ...]


def draw_digits(rng: random.Random) -> list[Digit]:
    """Two to four digits that differ in number, colour and place, in random order."""
    count = rng.randint(2, 4)
    numbers, colours, places = (rng.sample(range(n), count) for n in (len(NUMBERS), len(COLOURS), len(PLACES)))
    return [Digit(*values) for values in zip(numbers, colours, places, strict=True)]


def conversation(questions: Sequence[Question], scene: str = "") -> Conversation:
    """A conversation in LLaVA's `v1` template, with `scene` in words (or nothing) where the image would be."""
    after, spans = f"{scene}\n", []
    for index, question in enumerate(questions):
        after += f"{'USER: ' if index else ''}{question.text} ASSISTANT: "
        start = len(after) - 1  # the space before an answer belongs to its first token
        after += question.answer + END
        spans.append((start, len(after)))
    return Conversation(f"{SYSTEM} USER: ", after, tuple(spans))


def caption(digits: Sequence[Digit]) -> Conversation:
    """A caption in LLaVA's `plain` template: nothing before the image, the description and a newline after it."""
    text = describe(digits) + "\n"
    return Conversation("", text, ((0, len(text)),))


def slots(digits: Sequence[Digit], count: int, rng: random.Random) -> list[list[str]]:
    """`count` phrases of a scene as lists of words, each digit in one to six of them, the rest fillers.

    Phrases of a digit now and then miss a word, as patches at a digit's edge do; places come in reading order or
    in any order.
    """
    phrases: list[tuple[int, list[str]]] = []
    for digit in digits:
        words = [COLOURS[digit.colour], NUMBERS[digit.number], *PLACES[digit.place].split()]
        for copy in range(rng.choice((1, 2, 3, 4, 4, 4, 5, 6))):
            kept = words if copy == 0 else [word for word in words if rng.random() > 0.05]
            phrases.append((digit.place, kept or words))
    while len(phrases) < count:
        place = rng.randrange(len(PLACES))
        phrases.append((place, [*rng.sample(FILLERS, rng.randint(1, 2)), *PLACES[place].split()]))
    phrases = phrases[: max(count, len(digits))]
    rng.shuffle(phrases)
    if rng.random() < 0.7:
        phrases.sort(key=lambda phrase: phrase[0] // 2)
    return [words for _, words in phrases]


def corpus(samples: int, seed: int = 0) -> list[str]:
    """Texts of every kind, for training the tokenizer."""
    rng = random.Random(seed)
    texts = [" ".join((*NUMBERS, *COLOURS, *PLACES, *FILLERS))] * 10
    for _ in range(samples):
        digits = draw_digits(rng)
        talk = conversation(ask(digits, 3, rng), describe(digits))
        texts += [describe(digits), talk.before, *talk.after.split(END)]
    return texts
