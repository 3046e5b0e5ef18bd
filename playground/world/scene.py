"""Scenes and their pixels: handwritten digits of different colours, each in its own corner of a photograph.

A digit covers a cell of 2x2 patches of the vision tower, 4 of 144: what a compression keeps decides whether it
can still be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from playground.world.language import COLOURS, PLACES, Digit
from playground.world.photos import Split, load_photos, random_crop

IMAGE_SIZE = 96
PATCH = 8
GRID = IMAGE_SIZE // PATCH
CELL = 2  # patches per side that a digit covers
MARGIN = 2  # pixels by which strokes may leave the cell
DIGITS_PER_SCENE = (2, 4)
TEST_SHARE = 0.3
#: First patch row (or column) of a cell in the upper (left) and in the lower (right) half.
STARTS = ((1, 2, 3), (7, 8, 9))

RGB: dict[str, tuple[int, int, int]] = {
    "red": (240, 40, 40),
    "green": (50, 215, 60),
    "blue": (60, 110, 255),
    "yellow": (250, 228, 40),
    "purple": (205, 60, 235),
    "white": (250, 250, 250),
}


@dataclass(frozen=True)
class PlacedDigit:
    """A digit of a scene with its cell (first patch row and column) and the handwritten sample that draws it."""

    digit: Digit
    row: int
    column: int
    sample: int


@dataclass(frozen=True)
class Scene:
    """What stands where in one image: distinct numbers, distinct colours, distinct places."""

    placed: tuple[PlacedDigit, ...]

    @property
    def digits(self) -> list[Digit]:
        """The digits as a speaker sees them."""
        return [item.digit for item in self.placed]

    def patch_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Number and colour of each patch, [GRID, GRID] int64 each; -1 where there is no digit."""
        number = np.full((GRID, GRID), -1, dtype=np.int64)
        colour = number.copy()
        for item in self.placed:
            cell = (slice(item.row, item.row + CELL), slice(item.column, item.column + CELL))
            number[cell] = item.digit.number
            colour[cell] = item.digit.colour
        return number, colour


@cache
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: images [1797, 8, 8] in 0..1 and their numbers [1797]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)


@cache
def split_digits(split: Split) -> np.ndarray:
    """Indices of the handwritten samples of a split, the same on every machine.  Train and test are disjoint."""
    count = len(_load_digits()[1])
    order = np.random.default_rng(1797).permutation(count)
    border = round(count * TEST_SHARE)
    return np.sort(order[border:] if split == "train" else order[:border])


def draw_scene(split: Split, rng: np.random.Generator) -> Scene:
    """A random scene of two to four digits whose handwriting belongs to `split`."""
    count = int(rng.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1))
    numbers = rng.permutation(10)[:count]
    colours = rng.permutation(len(COLOURS))[:count]
    places = rng.permutation(len(PLACES))[:count]
    placed = []
    for number, colour, place in zip(numbers, colours, places, strict=True):
        row, column = (int(rng.choice(STARTS[half])) for half in divmod(int(place), 2))
        sample = int(rng.choice(samples_of(split, int(number))))
        placed.append(PlacedDigit(Digit(int(number), int(colour), int(place)), row, column, sample))
    return Scene(tuple(placed))


@cache
def samples_of(split: Split, number: int) -> np.ndarray:
    """Indices of the split's handwritten samples that show `number`."""
    indices = split_digits(split)
    return indices[_load_digits()[1][indices] == number]


class Renderer:
    """Turns scenes of one split into pixels.  Holds the photographs; everything random comes from the `rng` given.

    `variety` says how far handwriting is turned and sheared: 1 for the world, more to augment pretraining.
    """

    def __init__(self, split: Split, variety: float = 1.0) -> None:
        self.photos = load_photos(split)
        self.variety = variety

    def __call__(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """The image of a scene: [IMAGE_SIZE, IMAGE_SIZE, 3] uint8."""
        canvas = random_crop(self.photos, IMAGE_SIZE, rng)
        for item in scene.placed:
            paint(canvas, item, self.variety, rng)
        return np.clip(canvas, 0, 255).astype(np.uint8)


def paint(canvas: np.ndarray, item: PlacedDigit, variety: float, rng: np.random.Generator) -> None:
    """Paints one digit into `canvas`: a dark soft shadow first, so that strokes show on every photograph."""
    side = CELL * PATCH + 2 * MARGIN
    strokes = _handwriting(_load_digits()[0][item.sample], side, variety, rng)
    shadow = strokes.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.GaussianBlur(1.2))
    ink = np.asarray(strokes, dtype=np.float32)[..., None] / 255
    shade = 1 - 0.75 * np.asarray(shadow, dtype=np.float32)[..., None] / 255
    colour = np.asarray(RGB[COLOURS[item.digit.colour]], dtype=np.float32) + rng.normal(0, 10, 3).astype(np.float32)

    top, left = item.row * PATCH - MARGIN, item.column * PATCH - MARGIN
    rows = slice(max(top, 0), min(top + side, IMAGE_SIZE))
    columns = slice(max(left, 0), min(left + side, IMAGE_SIZE))
    inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    region = canvas[rows, columns] * shade[inside]
    canvas[rows, columns] = region * (1 - ink[inside]) + colour * ink[inside]


def _handwriting(sample: np.ndarray, side: int, variety: float, rng: np.random.Generator) -> Image.Image:
    """The 8x8 sample enlarged, slightly turned, sheared, scaled and shifted: a grey image of side x side pixels."""
    source = np.pad(np.clip(sample * 1.35, 0, 1), 1)
    image = Image.fromarray((source * 255).astype(np.uint8))
    angle, shear = variety * rng.uniform(-0.1, 0.1), variety * rng.uniform(-0.075, 0.075)
    scale = source.shape[0] / (side * rng.uniform(0.95, 1.15))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.array([[cos, sin + shear * scale], [-sin, cos]])
    centre = np.array([source.shape[1], source.shape[0]]) / 2
    target = np.array([side, side]) / 2 + rng.uniform(-1, 1, 2)
    offset = centre - matrix @ target
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    return image.transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
