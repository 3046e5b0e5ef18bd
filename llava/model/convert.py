"""Writing a checkpoint in another format: `llava.checkpoints.conversion` as a command line."""

import sys

from llava.checkpoints.conversion import convert, main
from llava.common.program import as_program

__all__ = ["convert", "main"]

if __name__ == "__main__" and (status := as_program(main)):
    sys.exit(status)
