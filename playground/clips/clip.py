"""Videos of three frames, and what is asked about them: digits that move, that change, and that come and go.

Every answer puts together what different frames show: both places of a digit that moves, both numbers of one that
changes, or two digits that are never seen at once. So no frame alone holds an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from playground.world.language import COLOURS, NUMBERS, PLACES, Digit
from playground.world.photos import Split, load_photos, random_crop
from playground.world.scene import IMAGE_SIZE, STARTS, PlacedDigit, paint, samples_of

FRAMES = 3
KINDS = ("move", "change", "appear")
"""Kinds of questions that are held out; every clip has questions of one of them."""

FURTHER = "further"
"""Kind of the questions that are asked in training alone."""

AT_ONCE = 2
"""Digits of a frame."""


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
        questions: all questions about the clip. None tells the answer to another: in training they are one
            conversation, and every answer has to be seen.
    """

    frames: tuple[tuple[tuple[PlacedDigit, int], ...], ...]
    questions: tuple[ClipQuestion, ...]

    def held_out(self) -> list[ClipQuestion]:
        """The first two questions of `KINDS`."""
        return [question for question in self.questions if question.kind in KINDS][:2]


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

    def before_and_after(self, before: int, after: int) -> list[int]:
        """One value in the first frames, the other from some frame on."""
        turn = int(self.rng.integers(1, FRAMES))
        return [before] * turn + [after] * (FRAMES - turn)

    def several(self, most: int, count: int) -> list[int]:
        return [int(value) for value in self.rng.permutation(most)[:count]]


def draw_clip(split: Split, rng: np.random.Generator) -> Clip:
    """A random clip whose handwriting belongs to `split`."""
    hand = _Hand(split, rng)
    return (_moving, _changing, _appearing)[int(rng.integers(len(KINDS)))](hand)


def _moving(hand: _Hand) -> Clip:
    """Two digits, each of which goes to another place at some time, never to where the other one is."""
    numbers, colours = hand.several(len(NUMBERS), AT_ONCE), hand.several(len(COLOURS), AT_ONCE)
    while True:
        paths = [hand.before_and_after(*hand.several(len(PLACES), 2)) for _ in range(AT_ONCE)]
        if all(one != other for one, other in zip(*paths, strict=True)):
            break
    frames: list[list[tuple[PlacedDigit, int]]] = [[] for _ in range(FRAMES)]
    questions = []
    for number, colour, path in zip(numbers, colours, paths, strict=True):
        cells, sample, seed = {place: hand.cell(place) for place in path}, hand.sample(number), hand.seed()
        for frame, place in zip(frames, path, strict=True):
            frame.append((PlacedDigit(Digit(number, colour, place), *cells[place], sample), seed))
        name = COLOURS[colour]
        places = listed(f"{name} {PLACES[place]}" for place in sorted(set(path)))
        questions.append(ClipQuestion("move", f"Which place is {name}?", places))
        questions.append(_colour_of(number, colour))
    return Clip(tuple(map(tuple, frames)), tuple(questions))


def _changing(hand: _Hand) -> Clip:
    """Two digits, each of which becomes another at some time."""
    numbers, colours = hand.several(len(NUMBERS), 2 * AT_ONCE), hand.several(len(COLOURS), AT_ONCE)
    frames: list[list[tuple[PlacedDigit, int]]] = [[] for _ in range(FRAMES)]
    questions = []
    for colour, place in zip(colours, hand.several(len(PLACES), AT_ONCE), strict=True):
        both = numbers.pop(), numbers.pop()
        cell, samples = hand.cell(place), {number: (hand.sample(number), hand.seed()) for number in both}
        for frame, number in zip(frames, hand.before_and_after(*both), strict=True):
            sample, seed = samples[number]
            frame.append((PlacedDigit(Digit(number, colour, place), *cell, sample), seed))
        name = COLOURS[colour]
        values = listed(f"{name} {NUMBERS[number]}" for number in sorted(both))
        questions.append(ClipQuestion("change", f"What digit is {name}?", values))
    return Clip(tuple(map(tuple, frames)), tuple(questions))


def _appearing(hand: _Hand) -> Clip:
    """Other digits in every frame."""
    numbers, colours = (hand.several(len(names), AT_ONCE * FRAMES) for names in (NUMBERS, COLOURS))
    frames = []
    questions: list[ClipQuestion] = []
    for start in range(0, AT_ONCE * FRAMES, AT_ONCE):
        digits = [
            Digit(numbers[start + one], colours[start + one], place)
            for one, place in enumerate(hand.several(len(PLACES), AT_ONCE))
        ]
        frames.append(
            tuple((PlacedDigit(one, *hand.cell(one.place), hand.sample(one.number)), hand.seed()) for one in digits)
        )
    for one in hand.several(FRAMES, FRAMES):  # each digit once, with one of the next frame
        pair = [frames[one][0][0].digit, frames[(one + 1) % FRAMES][1][0].digit]
        if hand.rng.random() < 0.5:
            pair.reverse()
        names = [COLOURS[digit.colour] for digit in pair]
        values = listed(f"{name} {NUMBERS[digit.number]}" for name, digit in zip(names, pair, strict=True))
        questions.append(ClipQuestion("appear", f"What digit is {' and '.join(names)}?", values))
    return Clip(tuple(frames), tuple(questions))


def _colour_of(number: int, colour: int) -> ClipQuestion:
    """A question that one frame answers, as the quickstart asks it about pictures."""
    name = NUMBERS[number]
    return ClipQuestion(FURTHER, f"What colour is the {name}?", f"{name} {COLOURS[colour]}")


def listed(items: Iterable[str]) -> str:
    """At least two things as English lists them: "a, b and c"."""
    *most, last = items
    return f"{', '.join(most)} and {last}"


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
