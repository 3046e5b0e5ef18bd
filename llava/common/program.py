"""Runs a command line program: a closed pipe ends it quietly, and a full disk is reported in a sentence."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from llava.common.atomic_write import UnwritableError
from llava.common.outside_files import in_words, told_by_system

READER_GONE = 128 + 13
"""Exit status of a program whose reader left (`| head`), as shells name the end by SIGPIPE."""
INTERRUPTED = 128 + 2
"""Exit status of a program that was ended by Ctrl-C, as shells name the end by SIGINT."""
CANNOT_WRITE = 2
"""Exit status of a program that cannot write its output, or not open a file."""


def as_program(main: Callable[..., int | None], *arguments: Any) -> int:
    """Run the command line of a program.

    Args:
        main: main function of the program.
        arguments: arguments of the program.

    Returns:
        its exit status: 0 where it returns None, `READER_GONE` where nobody reads its output any more, `INTERRUPTED`,
        after a word, on Ctrl-C, and `CANNOT_WRITE`, after a sentence, where the output cannot be written or the
        system lets a file or folder not be opened.

    Raises:
        SystemExit: as the program does.
    """
    with _guarded_output():
        try:
            status = main(*arguments)
        except UnwritableError as error:
            sys.stderr.write(f"{error}\n")
            status = CANNOT_WRITE
        except OSError as error:
            if not told_by_system(error):
                raise
            sys.stderr.write(f"{in_words(error)}\n")
            status = CANNOT_WRITE
        except KeyboardInterrupt:
            sys.stderr.write("Stopped.\n")
            status = INTERRUPTED
        finally:
            sys.stdout.flush()
    return status or 0


class _Output:
    """Standard output; what goes wrong in writing ends the program, whatever errors it catches on the way."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """See `io.TextIOBase`."""
        with _ending(self._stream):
            return int(self._stream.write(text))

    def flush(self) -> None:
        """See `io.TextIOBase`."""
        with _ending(self._stream):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _guarded_output() -> Iterator[None]:
    former = sys.stdout
    sys.stdout = _Output(former)
    try:
        yield
    finally:
        sys.stdout = former


@contextlib.contextmanager
def _ending(stream: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _discard(stream)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(READER_GONE) from None
        sys.stderr.write(f"The output cannot be written: {error.strerror}; make room there, or send it elsewhere.\n")
        raise SystemExit(CANNOT_WRITE) from None


def _discard(stream: Any) -> None:
    """Send what is left in a stream's buffer nowhere, so that Python does not stumble over it at its end."""
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
