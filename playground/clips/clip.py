"""Videos of three frames, and what is asked about them: digits that move, that change, and that are added.

Every answer says what was seen in the order of time: the places of a digit that moves, the numbers of one that changes,
or the digits in the order in which they were added. So no frame alone holds an answer, and neither do all frames
without their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from playground.world.language import COLOURS, NUMBERS, PLACES, Digit
from playground.world.photos import Split, load_photos, random_crop
from playground.world.scene import IMAGE_SIZE, STARTS, PlacedDigit, paint, samples_of

FRAMES = 3
KINDS = ("move", "change", "add")
"""Kinds of questions that are held out."""

FURTHER = "further"
"""Kind of the questions that are asked in training alone."""

ADDED_SHARE = 0.4
"""Share of the clips in which digits are added; in the others one moves and one changes."""


@dataclass(frozen=True)
class ClipQuestion:
    """A question about a clip and its only right answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Clip:
    """What is seen in each frame, and what is asked.

    Attributes:
        frames: for each frame its digits, each with the seed of its shade and of how it was written.
        questions: all questions about the clip.
    """

    frames: tuple[tuple[tuple[PlacedDigit, int], ...], ...]
    questions: tuple[ClipQuestion, ...]

    def held_out(self) -> list[ClipQuestion]:
        """The questions of `KINDS`."""
        return [question for question in self.questions if question.kind in KINDS]


class _Hand:
    """Draws what digits look like: cell, handwriting and seed of the shade."""

    def __init__(self, split: Split, rng: np.random.Generator) -> None:
        self.split: Split = split
        self.rng = rng

    def cell(self, place: int) -> tuple[int, int]:
        row, column = (int(self.rng.choice(STARTS[half])) for half in divmod(place, 2))
        return row, column

    def sample(self, number: int) -> int:
        return int(self.rng.choice(samples_of(self.split, number)))

    def seed(self) -> int:
        return int(self.rng.integers(2**31))

    def several(self, most: int, count: int) -> list[int]:
        return [int(value) for value in self.rng.permutation(most)[:count]]


def draw_clip(split: Split, rng: np.random.Generator) -> Clip:
    """A random clip whose handwriting belongs to `split`."""
    hand = _Hand(split, rng)
    return _added(hand) if rng.random() < ADDED_SHARE else _moved_and_changed(hand)


def _moved_and_changed(hand: _Hand) -> Clip:
    """One digit stands in another place in every frame and may come back; another keeps its place and is replaced."""
    moving, *changing = hand.several(len(NUMBERS), 1 + FRAMES)
    first, second = hand.several(len(COLOURS), 2)
    home, *others = hand.several(len(PLACES), len(PLACES))
    path = [others[0]]
    while len(path) < FRAMES:
        path.append(int(hand.rng.choice([place for place in others if place != path[-1]])))
    cells = {place: hand.cell(place) for place in (home, *others)}
    sample, seed = hand.sample(moving), hand.seed()
    frames = tuple(
        (
            (PlacedDigit(Digit(moving, first, place), *cells[place], sample), seed),
            (PlacedDigit(Digit(number, second, home), *cells[home], hand.sample(number)), hand.seed()),
        )
        for place, number in zip(path, changing, strict=True)
    )
    mover, changer = COLOURS[first], COLOURS[second]
    numbers = [NUMBERS[number] for number in changing]
    questions = (
        ClipQuestion("move", f"Which place is {mover}?", _in_order(mover, [PLACES[place] for place in path])),
        ClipQuestion("change", f"What digit is {changer}?", _in_order(changer, numbers)),
        ClipQuestion(FURTHER, f"What digit is {PLACES[home]}?", _in_order(PLACES[home], numbers)),
        ClipQuestion(FURTHER, f"What digit is {mover}?", _in_order(mover, [NUMBERS[moving]] * FRAMES)),
    )
    return Clip(frames, questions)


def _added(hand: _Hand) -> Clip:
    """A digit in the first frame, and one more in every other."""
    digits = [
        Digit(*values)
        for values in zip(*(hand.several(len(names), FRAMES) for names in (NUMBERS, COLOURS, PLACES)), strict=True)
    ]
    placed = [(PlacedDigit(digit, *hand.cell(digit.place), hand.sample(digit.number)), hand.seed()) for digit in digits]
    colours, places = [COLOURS[digit.colour] for digit in digits], [PLACES[digit.place] for digit in digits]
    both = [f"{colour} {NUMBERS[digit.number]}" for colour, digit in zip(colours, digits, strict=True)]
    questions = (
        ClipQuestion("add", "What digit is added?", ", ".join(both)),
        ClipQuestion(FURTHER, "Which place is added?", ", ".join(places)),
        ClipQuestion(FURTHER, "Which colour is added?", ", ".join(colours)),
    )
    return Clip(tuple(tuple(placed[: frame + 1]) for frame in range(FRAMES)), questions)


def _in_order(reference: str, values: Sequence[str]) -> str:
    """What was asked about, and what it was in each frame."""
    return f"{reference} {', '.join(values)}"


class ClipRenderer:
    """Turns clips of one split into frames; everything random comes from the `rng` given."""

    def __init__(self, split: Split) -> None:
        self.photos = load_photos(split)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> np.ndarray:
        """Frames [FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3] uint8; the photograph behind the digits does not change."""
        photo = random_crop(self.photos, IMAGE_SIZE, rng)
        frames = []
        for shown in clip.frames:
            canvas = photo.copy()
            for digit, seed in shown:
                paint(canvas, digit, 1.0, np.random.default_rng(seed))
            frames.append(np.clip(canvas, 0, 255).astype(np.uint8))
        return np.stack(frames)
