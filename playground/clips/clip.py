"""Videos of eight frames, and what is asked about them: one digit moves, one changes, one is added.

No frame alone answers a question. Where a digit moved to and from, and what it was before it changed, is in two
frames; which digit was added can only be told from a frame without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from playground.world.language import COLOURS, NUMBERS, PLACES, Digit
from playground.world.photos import Split, load_photos, random_crop
from playground.world.scene import IMAGE_SIZE, STARTS, PlacedDigit, paint, samples_of

FRAMES = 8
MOVE_TAKES = 2  # frames from leaving one place to reaching the other
EARLIEST, LATEST = 2, 6
"""Frames in which a digit is changed, added, or halfway: every clip shows what was before for two frames or more."""


@dataclass(frozen=True)
class Event:
    """One thing that happens in a clip.

    Attributes:
        kind: `move`, `change` or `add`.
        frame: frame in which it happens; a move is halfway then.
        before: digit before it; None where there was none.
        after: digit after it.
        pen: seeds of the two digits' handwriting and shade.
    """

    kind: str
    frame: int
    before: PlacedDigit | None
    after: PlacedDigit
    pen: tuple[int, int]

    def at(self, frame: int) -> tuple[PlacedDigit, int] | None:
        """The digit in a frame, and the seed that it is drawn with; None where it is not there yet."""
        if self.kind == "move" and self.before is not None:
            share = min(max((frame - self.frame + 1) / MOVE_TAKES, 0.0), 1.0)
            row, column = (
                round(start + (end - start) * share)
                for start, end in ((self.before.row, self.after.row), (self.before.column, self.after.column))
            )
            return replace(self.after, row=row, column=column), self.pen[1]
        if frame >= self.frame:
            return self.after, self.pen[1]
        return None if self.before is None else (self.before, self.pen[0])

    def question(self) -> tuple[str, str]:
        """The question about it and the only right answer, in words that the playground's language model knows."""
        after = self.after.digit
        colour, number = COLOURS[after.colour], NUMBERS[after.number]
        if self.before is None:
            return "What digit is added?", f"{colour} {number}"
        before = self.before.digit
        if self.kind == "move":
            return f"Which place is {colour}?", f"{colour} {PLACES[before.place]} and {PLACES[after.place]}"
        return f"What digit is {colour}?", f"{colour} {NUMBERS[before.number]} and {number}"


@dataclass(frozen=True)
class Clip:
    """A move, a change and an addition, with distinct numbers, colours and places."""

    events: tuple[Event, Event, Event]


def draw_clip(split: Split, rng: np.random.Generator) -> Clip:
    """A random clip whose handwriting belongs to `split`."""
    moved, old, new, added = (int(number) for number in rng.permutation(len(NUMBERS))[:4])
    colours = [int(colour) for colour in rng.permutation(len(COLOURS))[:3]]
    start, end, changing, adding = (int(place) for place in rng.permutation(len(PLACES)))

    def put(number: int, colour: int, place: int, where: tuple[int, int], sample: int | None = None) -> PlacedDigit:
        drawn = int(rng.choice(samples_of(split, number))) if sample is None else sample
        return PlacedDigit(Digit(number, colour, place), *where, drawn)

    def cell(place: int) -> tuple[int, int]:
        row, column = (int(rng.choice(STARTS[half])) for half in divmod(place, 2))
        return row, column

    def frame() -> int:
        return int(rng.integers(EARLIEST, LATEST + 1))

    def pen() -> tuple[int, int]:
        first, second = (int(seed) for seed in rng.integers(2**31, size=2))
        return first, second

    before = put(moved, colours[0], start, cell(start))
    here = cell(changing)
    return Clip(
        (
            Event("move", frame(), before, put(moved, colours[0], end, cell(end), before.sample), pen()),
            Event(
                "change", frame(), put(old, colours[1], changing, here), put(new, colours[1], changing, here), pen()
            ),
            Event("add", frame(), None, put(added, colours[2], adding, cell(adding)), pen()),
        )
    )


class ClipRenderer:
    """Turns clips of one split into frames; everything random comes from the `rng` given."""

    def __init__(self, split: Split) -> None:
        self.photos = load_photos(split)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> np.ndarray:
        """Frames [FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3] uint8; the photograph behind the digits does not change."""
        photo = random_crop(self.photos, IMAGE_SIZE, rng)
        frames = []
        for number in range(FRAMES):
            canvas = photo.copy()
            for event in clip.events:
                shown = event.at(number)
                if shown is not None:
                    digit, seed = shown
                    paint(canvas, digit, 1.0, np.random.default_rng(seed))
            frames.append(np.clip(canvas, 0, 255).astype(np.uint8))
        return np.stack(frames)
