"""The model that programs serve where none is named, and the questions that lie beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava.common.json_lines import placed_objects
from llava.data.images import image_path

OUTPUT = Path("playground/output/quickstart")
USUAL = "the model that scripts/quickstart.sh trained"


def quickstart_model() -> str:
    """The folder of the model that the quickstart trained, in the folder one stands in or in this checkout.

    Raises:
        ValueError: if there is none.
    """
    output = Path(os.environ.get("QUICKSTART_OUTPUT") or OUTPUT)
    places = [output / "model", Path(__file__).resolve().parents[2] / output / "model"]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        raise ValueError(
            f"No --model-path is given, and there is no model of the quickstart in {str(places[0])!r}; run bash "
            "scripts/quickstart.sh first, or name a checkpoint with --model-path."
        )
    return str(found)


def picture_questions(file: Path, images: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Questions about pictures, in order: the text, the picture's file, and the whole line.

    Args:
        file: JSON lines with `text` and `image`, as `python -m playground.world` writes them.
        images: folder in which the names of the images start.

    Raises:
        ValueError: if the file cannot be read or holds no question, a line lacks one of both, or an image does not lie
            in the folder.
    """
    example = '{"image": "1.png", "text": "What is this?"}'
    lines = placed_objects(file, f"a question is such as {example}")
    if not lines:
        raise ValueError(f"{file} holds no question; write lines such as {example} into it.")
    for place, line in lines:
        if not all(isinstance(line.get(key), str) and line[key].strip() for key in ("image", "text")):
            raise ValueError(f"{place} lacks image or text; a question is such as {example}.")
        yield line["text"], image_path(images, line["image"]), line
