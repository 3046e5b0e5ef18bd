"""Float32 weights out of DeepSpeed's pieces: `llava.checkpoints.consolidation` as a command line."""

import sys

from llava.checkpoints.consolidation import consolidate, main
from llava.common.program import as_program

__all__ = ["consolidate", "main"]

if __name__ == "__main__" and (status := as_program(main)):
    sys.exit(status)
