"""Permissions of what is written: those that `open` and `mkdir` give under the user's umask."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path


def umask() -> int:
    """The process's mask for new files."""
    with contextlib.suppress(OSError):
        held = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
        if held:
            return int(held[1], 8)
    mask = os.umask(0o077)  # where it can be read only by setting it; what a thread writes meanwhile stays private
    os.umask(mask)
    return mask


def follow_umask(path: str | Path) -> None:
    """Give a file, or a folder and all that is in it, the permissions that the umask leaves to new ones.

    safetensors and Python's `tempfile` write files and folders that only their owner may read. Nothing is taken away
    that was allowed before, and where a file system knows no permissions nothing happens.

    Args:
        path: a link is left as it is.
    """
    path, mask = Path(path), umask()
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            mode = one.lstat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                wider = mode | ((0o777 if stat.S_ISDIR(mode) else 0o666) & ~mask)
                if wider != mode:
                    one.chmod(stat.S_IMODE(wider))
