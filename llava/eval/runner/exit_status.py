"""Exit status of the evaluation's programs, with a sentence on standard error about what ended them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from llava.common.image_limits import is_lack_of_memory
from llava.common.outside_files import in_words
from llava.common.program import INTERRUPTED
from llava.common.shown import say

KEPT = "What was done until now is kept, and the same command goes on from there."


class WorkerError(RuntimeError):
    """A worker process ended before its work did; the message says why and what to do."""


def exit_status(program: Callable[[], int], kept: str = KEPT) -> int:
    """Run a program; what ends it early becomes a sentence on standard error and a status.

    Args:
        program: gives the status where nothing does.
        kept: what is said of its work where Ctrl-C ends it.

    Returns:
        its status; 2 for wrong input, or a file that cannot be read or written; 130 if it was interrupted; 1 if a
        worker process died or memory ran out, of the device or of the machine.
    """
    logging.basicConfig(level=logging.WARNING)
    try:
        return program()
    except WorkerError as error:
        tell(f"{error} {KEPT}")
        return 1
    except (ValueError, OSError) as error:
        tell(in_words(error))
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        tell(f"That takes more memory than there is ({first_line(error)}). {kept}".rstrip())
        return 1
    except KeyboardInterrupt:
        tell(f"Stopped. {kept}".rstrip())
        return INTERRUPTED


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def tell(text: str) -> None:
    """Print lines on standard error, as `llava.common.shown.say` does."""
    say(text, file=sys.stderr)
