"""Writing a file in one step: whoever is killed meanwhile leaves the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Write a text file in one step; its folder is made if need be.

    Args:
        path: of the file.
        text: all of it.

    Returns:
        the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return path
