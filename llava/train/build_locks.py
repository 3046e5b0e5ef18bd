"""Stale lock files of DeepSpeed's extension builds: a killed build leaves one, and every later start waits for it."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

logger = logging.getLogger(__name__)

_OLD = 60.0  # seconds; a build takes about half a minute


def warn_of_build_locks(older_than: float = _OLD) -> list[Path]:
    """Warn of the locks of builds in PyTorch's folder of extensions, each with its age; nothing is removed.

    Whoever builds an extension makes a file `lock` beside it, and whoever needs it waits without a word until the file
    is gone (torch.utils.file_baton). One that was killed removes nothing.

    Args:
        older_than: seconds; a younger lock is that of a build under way.

    Returns:
        The locks that were warned about.
    """
    found = []
    for path in sorted((*_root().glob("*/lock"), *_root().glob("*/*/lock"))):
        try:
            since = path.stat().st_mtime
        except OSError:  # the build ended in between
            continue
        if time.time() - since > older_than:
            found.append(path)
            logger.warning(
                "%s is there since %s: an extension is being built, or its build was killed and every start waits for "
                "it for ever. If no other process is building, remove that file.",
                path,
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)),
            )
    return found


def _root() -> Path:
    """Where PyTorch builds extensions; without `TORCH_EXTENSIONS_DIR` there are folders by version in between."""
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    if named:
        return Path(named)
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root())
