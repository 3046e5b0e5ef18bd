"""Command line: `python -m playground.clips --out DIR` writes pictures, clips, questions and two towers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common.number_flags import MOST_PROCESSES, SEED, count
from llava.common.outputs import claim_folder
from llava.common.path_flags import FOLDER_TO_WRITE
from llava.common.program import as_program
from playground.clips.build import ClipsSize, build_clips
from playground.clips.towers import write_towers

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, writes data and the towers that see them."""
    parser = argparse.ArgumentParser(
        prog="python -m playground.clips",
        description="Writes the playground's pictures and clips, their questions and towers.",
    )
    default = ClipsSize()
    parser.add_argument("--out", type=FOLDER_TO_WRITE, required=True, help="folder to write into")
    parser.add_argument("--pictures", type=count(), default=default.pictures, help="pictures to learn from")
    parser.add_argument("--train", type=count(), default=default.train, help="clips to learn from")
    parser.add_argument("--test", type=count(), default=default.test, help="held-out clips")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--workers", type=count(1, MOST_PROCESSES), default=2, help="processes that draw")
    options = parser.parse_args(arguments)
    try:
        claim_folder(options.out, "playground.clips", "--out")
    except ValueError as error:
        sys.exit(f"clips: {error}")
    write_towers(ASSETS / "vision_tower", options.out / "towers")
    size = ClipsSize(options.pictures, options.train, options.test)
    build_clips(options.out, size, options.seed, options.workers)
    print(f"Wrote {size} to {options.out}")


if __name__ == "__main__":
    sys.exit(as_program(main))
