"""Pictures and questions for people who have none at hand: those of the playground, or a few that are drawn here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from llava.data.families.base import ModelInputs
from llava.data.frames import Frames
from llava.data.images import open_rgb
from llava.inference.chat import Shown
from llava.serve.usual_model import picture_questions

logger = logging.getLogger(__name__)

MOST_EXAMPLES = 4
_FRAMES, _A_SECOND = 16, 4.0
_QUESTIONS, _IMAGES = "test.jsonl", "images"
_INK = ("#d55e00", "#0072b2", "#009e73", "#e69f00")


@dataclass(frozen=True)
class ExampleQuestion:
    """A question that the page offers.

    Attributes:
        text: the question.
        shown: what is shown with it.
    """

    text: str
    shown: Shown

    @property
    def picture(self) -> Image.Image:
        """The picture, or the first frame."""
        return self.shown.pictures[0] if isinstance(self.shown, Frames) else self.shown


def example_questions(model_path: str, inputs: ModelInputs, folder: Path | None = None) -> list[ExampleQuestion]:
    """A few questions: of the playground's held-out ones where they lie beside the model, else drawn pictures.

    Args:
        model_path: where the model was opened.
        inputs: makes inputs of the model; what it cannot be shown is left out.
        folder: folder with `test.jsonl` and `images`, as `python -m playground.world` writes it; None looks for one
            beside the model.

    Raises:
        ValueError: if `folder` is named and holds no such file, or one that cannot be read.
    """
    beside = Path(model_path).resolve().parent / "data"
    place = folder or beside
    if folder is None and not (beside / _QUESTIONS).is_file():
        return _drawn(inputs)
    if not (place / _QUESTIONS).is_file():
        raise ValueError(
            f"--examples is {str(place)!r}, which holds no {_QUESTIONS}; python -m playground.world makes one."
        )
    try:
        return _held_out(place, inputs)
    except ValueError as error:
        if folder is not None:
            raise
        logger.info("The questions beside the model are not shown: %s", error)
        return _drawn(inputs)


def _held_out(place: Path, inputs: ModelInputs) -> list[ExampleQuestion]:
    """The first question of each of the first categories in a folder; without categories the first questions."""
    by_kind: dict[str, ExampleQuestion] = {}
    for text, picture, line in picture_questions(place / _QUESTIONS, place / _IMAGES):
        kind = str(line.get("category", len(by_kind)))
        if kind not in by_kind:
            by_kind[kind] = ExampleQuestion(text, open_rgb(picture, inputs.image_opening))
        if len(by_kind) == MOST_EXAMPLES:
            break
    return list(by_kind.values())


def _drawn(inputs: ModelInputs) -> list[ExampleQuestion]:
    """Shapes, and a ball that crosses the picture, as far as the model can be shown them."""
    images = [
        ("What colour is the circle on the left?", _scene([(100, 160, 0), (240, 160, 1)])),
        ("How many circles are there?", _scene([(80, 90, 2), (230, 110, 3), (150, 240, 1)])),
    ]
    drawn = []
    try:
        for text, picture in images:
            inputs.image(picture, "An example")
            drawn.append(ExampleQuestion(text, picture))
        numbers = inputs.frame_numbers(_FRAMES, _A_SECOND)
        frames = tuple(_scene([(40 + 256 * number // _FRAMES, 200, 0)]) for number in numbers)
        video = Frames(frames, tuple(numbers), _FRAMES, _A_SECOND)
        inputs.video(video, "An example")
        drawn.append(ExampleQuestion("Where does the ball go?", video))
    except ValueError as error:
        logger.info("The page lacks an example: %s", error)
    return drawn


def _scene(circles: list[tuple[int, int, int]]) -> Image.Image:
    """Circles on a meadow under a sky, 336 pixels square: each by its centre and the number of its colour."""
    picture = Image.new("RGB", (336, 336), "#cfe8f7")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 220, 336, 336), fill="#b7d7a8")
    for x, y, number in circles:
        draw.ellipse((x - 44, y - 44, x + 44, y + 44), fill=_INK[number], outline="#333333", width=3)
    return picture
