"""Pictures and questions for people who have none at hand: those of the playground, or a few that are drawn here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from llava.common.json_lines import read_objects
from llava.data.frames import Frames
from llava.data.images import image_path, open_rgb
from llava.inference.chat import Shown

MOST_EXAMPLES = 4
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


def example_questions(model_path: str, opening: str, folder: Path | None = None) -> list[ExampleQuestion]:
    """A few questions: of the playground's held-out ones where they lie beside the model, else drawn pictures.

    Args:
        model_path: where the model was opened.
        opening: how its images are opened.
        folder: folder with `test.jsonl` and `images`, as `python -m playground.world` writes it; None looks for one
            beside the model.

    Raises:
        ValueError: if `folder` is named and holds no such file.
    """
    beside = Path(model_path).resolve().parent / "data"
    place = folder or beside
    if folder is None and not (beside / _QUESTIONS).is_file():
        return _drawn()
    if not (place / _QUESTIONS).is_file():
        raise ValueError(
            f"--examples is {str(place)!r}, which holds no {_QUESTIONS}; python -m playground.world makes one."
        )
    by_kind: dict[str, ExampleQuestion] = {}
    for line in read_objects(place / _QUESTIONS, "write the questions anew"):
        kind = str(line.get("category", len(by_kind)))
        if kind not in by_kind:
            picture = open_rgb(image_path(str(place / _IMAGES), str(line["image"])), opening)
            by_kind[kind] = ExampleQuestion(str(line["text"]), picture)
        if len(by_kind) == MOST_EXAMPLES:
            break
    return list(by_kind.values())


def _drawn() -> list[ExampleQuestion]:
    """Shapes, and a ball that crosses the picture."""
    frames = tuple(_scene([(40 + 30 * number, 200, 0)]) for number in range(8))
    return [
        ExampleQuestion("What colour is the circle on the left?", _scene([(100, 160, 0), (240, 160, 1)])),
        ExampleQuestion("How many circles are there?", _scene([(80, 90, 2), (230, 110, 3), (150, 240, 1)])),
        ExampleQuestion("Where does the ball go?", Frames(frames, tuple(range(8)), 8, 4.0)),
    ]


def _scene(circles: list[tuple[int, int, int]]) -> Image.Image:
    """Circles on a meadow under a sky, 336 pixels square: each by its centre and the number of its colour."""
    picture = Image.new("RGB", (336, 336), "#cfe8f7")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 220, 336, 336), fill="#b7d7a8")
    for x, y, number in circles:
        draw.ellipse((x - 44, y - 44, x + 44, y + 44), fill=_INK[number], outline="#333333", width=3)
    return picture
