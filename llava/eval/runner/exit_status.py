"""Exit status of the evaluation's programs, with a sentence on standard error about what ended them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from llava.common.outside_files import in_words
from llava.common.program import INTERRUPTED
from llava.common.shown import printable

KEPT = "What was done until now is kept, and the same command goes on from there."


class WorkerError(RuntimeError):
    """A worker process ended before its work did; the message says why and what to do."""


def exit_status(program: Callable[[], int], kept: str = KEPT) -> int:
    """Run a program; what ends it early becomes a sentence on standard error and a status.

    Args:
        program: gives the status where nothing does.
        kept: what is said of its work where Ctrl-C ends it.

    Returns:
        its status; 2 for wrong input, a file that cannot be read or written, or memory that ran out; 130 if it was
        interrupted; 1 if a worker process died or its device ran out of memory.
    """
    logging.basicConfig(level=logging.WARNING)
    try:
        return program()
    except WorkerError as error:
        tell(f"{error} {KEPT}")
        return 1
    except (ValueError, OSError, MemoryError) as error:
        tell(in_words(error))
        return 2
    except KeyboardInterrupt:
        tell(f"Stopped. {kept}".rstrip())
        return INTERRUPTED


def tell(text: str) -> None:
    """Print lines on standard error, as `printed` makes them."""
    print(printed(text), file=sys.stderr, flush=True)


def printed(text: str) -> str:
    """Lines for a terminal; control characters, as of a file's name or a server's reply, are made visible."""
    return "\n".join(map(printable, text.split("\n")))
