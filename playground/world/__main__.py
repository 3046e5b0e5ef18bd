"""Command line: `python -m playground.world --out DIR` writes the visual question-answering set."""

from __future__ import annotations

import argparse
import sys

from llava.common.number_flags import MOST_PROCESSES, SEED, count
from llava.common.outputs import claim_folder
from llava.common.path_flags import FOLDER_TO_WRITE
from llava.common.program import as_program
from playground.world.build import WorldSize, build_world


def main() -> None:
    """Parses the command line and builds the world."""
    parser = argparse.ArgumentParser(description="Writes the playground's images and questions.")
    default = WorldSize()
    parser.add_argument("--out", type=FOLDER_TO_WRITE, required=True, help="folder to write into")
    parser.add_argument("--pretrain", type=count(), default=default.pretrain, help="images with a caption")
    parser.add_argument("--train", type=count(), default=default.instruct, help="images with a conversation")
    parser.add_argument("--test", type=count(), default=default.test, help="held-out questions, one image each")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--workers", type=count(1, MOST_PROCESSES), default=2, help="processes that draw")
    arguments = parser.parse_args()
    try:
        claim_folder(arguments.out, "playground.world", "--out")
    except ValueError as error:
        sys.exit(f"world: {error}")
    size = WorldSize(arguments.pretrain, arguments.train, arguments.test)
    build_world(arguments.out, size, arguments.seed, arguments.workers)
    print(f"Wrote {size} to {arguments.out}")


if __name__ == "__main__":
    sys.exit(as_program(main))
