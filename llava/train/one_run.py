"""A lock on the output folder of a run, taken by rank 0 and reported to all ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from llava.common.folder_lock import FolderInUseError, alone_in
from llava.model.collectives import of_all_ranks
from llava.train.arguments import TrainingArguments

_WAY_OUT = (
    "wait until it ends, stop it (SIGTERM lets it save, and the same command goes on from there), or choose another "
    "--output_dir"
)


class RefusedElsewhereError(ValueError):
    """Rank 0 found something that ends the run, and says so; the other ranks end with it."""


@contextlib.contextmanager
def only_run(args: TrainingArguments) -> Iterator[None]:
    """Hold the output folder of a run; rank 0 takes the lock, and all ranks hear whether it got it.

    All ranks must enter it, and no rank may have changed anything in the folder before.

    Raises:
        FolderInUseError: at rank 0, if another run holds the folder; says which.
        RefusedElsewhereError: at the other ranks then.
    """
    with contextlib.ExitStack() as held:
        refused: FolderInUseError | None = None
        if args.process_index == 0:
            try:
                busy = f"--output_dir {args.output_dir!r} is in use by another run"
                held.enter_context(alone_in(args.output_dir, busy, _WAY_OUT))
            except FolderInUseError as error:
                refused = error
        if any(of_all_ranks([refused is not None])):
            raise refused or RefusedElsewhereError(f"--output_dir {args.output_dir!r} is in use by another run.")
        yield
