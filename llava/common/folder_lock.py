"""A lock on a folder, released by the kernel when its holder dies, with a note of who holds it.

The lock is `flock(2)` on a hidden file of the folder, through the library `filelock`. It ends with the process that
took it, `kill -9` included; children that it leaves behind, such as data workers, do not keep it. On NFS Linux asks the
server for it, so that it holds between machines too, unless the folder is mounted with `nolock` or `local_lock`: then
it holds on one machine. Lustre needs the mount option `flock`. Where a file system has no locks, or cannot be written,
a warning says that nothing keeps a second run out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava.common.child_processes import is_running
from llava.common.outside_files import read_text

logger = logging.getLogger(__name__)

LOCK_FILE = ".run.lock"
_NOTE_SUFFIX = "-holder"
_GRACE = (
    10.0  # seconds that children of a dead holder may take to notice; older releases of filelock lend them the lock
)


class FolderInUseError(ValueError):
    """Another program writes into a folder."""


@contextlib.contextmanager
def alone_in(folder: str | Path, busy: str, hint: str, name: str = LOCK_FILE) -> Iterator[None]:
    """Keep other programs out of a folder meanwhile; nothing of the lock is left behind.

    A folder that is made for the lock alone is removed again if nothing was written into it.

    Args:
        folder: made if need be.
        busy: what a user is told who is refused, up to who holds the lock: a part of a sentence.
        hint: what to do then: another part.
        name: name of the lock's file, where a folder has several.

    Raises:
        FolderInUseError: if another program holds the lock; says which, and since when.
        OSError: if the folder cannot be made.
    """
    from filelock import FileLock

    folder = Path(folder)
    path, note = folder / name, folder / f"{name}{_NOTE_SUFFIX}"
    made = not folder.exists()
    lock = FileLock(path, timeout=0, thread_local=False)
    held = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The folder {str(folder)!r} cannot be made ({error}); choose another place.") from error
    try:
        held = _take(lock, note)
        if held:
            with contextlib.suppress(OSError):  # the lock holds without a note of who has it
                _describe(note)
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s), so nothing keeps another run out of it.", folder, error)
    else:
        if not held:
            raise FolderInUseError(f"{busy}{_holder(note)}; {hint}.")
    try:
        yield
    finally:
        if held:
            with contextlib.suppress(OSError):
                note.unlink(missing_ok=True)
                path.unlink(missing_ok=True)  # while it is held: a lock on a file that has no name any more is no lock
            lock.release()
        if made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def _take(lock: Any, note: Path) -> bool:
    """Whether the lock is ours; a dead holder's children get a moment to end."""
    from filelock import Timeout

    try:
        lock.acquire()
    except Timeout:
        if not _is_gone(_read(note)):
            return False
        try:
            lock.acquire(timeout=_GRACE)
        except Timeout:
            return False
    return True


def _describe(note: Path) -> None:
    note.unlink(missing_ok=True)  # whatever it is: to write to a pipe would wait for its reader
    about = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    note.write_text(json.dumps(about) + "\n", encoding="utf-8")


def _read(note: Path) -> dict[str, Any]:
    """What the holder says of itself; empty where it has not yet, or cannot."""
    try:
        content = json.loads(read_text(note))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _holder(note: Path) -> str:
    about = _read(note)
    pid, host, since = (about.get(name) for name in ("pid", "host", "since"))
    if type(pid) is not int or not all(isinstance(one, str) and one.isprintable() for one in (host, since)):
        return ""
    return f" (process {pid:d} on {host:.80}, since {since:.80})"


def _is_gone(about: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    pid = about.get("pid")
    if about.get("host") != socket.gethostname() or type(pid) is not int or pid <= 0:
        return False
    return not is_running(pid)
