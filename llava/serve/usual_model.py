"""The model that programs serve where none is named."""

from __future__ import annotations

import os
from pathlib import Path

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
