"""Names from outside that become files or folders of results: each is one component of a path, or is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from llava.common.shown import shown

LONGEST_NAME = 200
"""Bytes of a name; file systems take 255, and parts, locks and unfinished files add to it."""


def folder_name(name: str) -> str:
    """A name as the folder of its results has it: the same, but for one that is too long, which is cut and gets a
    digest.

    Raises:
        ValueError: if it would lead to another folder, or no file system takes it.
    """
    content = os.fsencode(name) if _is_encodable(name) else b""
    if name in ("", os.curdir, os.pardir) or os.sep in name or "\0" in name or not content:
        raise ValueError(f"{shown(name)} cannot name a folder of results; rename the folder or file of that name.")
    if len(content) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(content).hexdigest()[:8]
    return f"{content[: LONGEST_NAME - 9].decode('utf-8', 'ignore')}-{digest}"


def result_file(place: str | Path, flag: str) -> Path:
    """The path of a file that results are written to; that it is not read as well is for `llava.common.outputs` to say.

    Args:
        place: as it was given.
        flag: that it was given with.

    Raises:
        ValueError: if it names no file, a folder or a device.
    """
    text, path = str(place), Path(place).expanduser()
    needed = f"{flag} is {shown(text)}; it must name a file"
    if not text.strip() or "\0" in text or not _is_encodable(text):
        raise ValueError(f"{needed}, in characters that a file system takes.")
    if text.endswith(os.sep) or text.endswith(f"{os.sep}.") or path.name in ("", os.curdir, os.pardir):
        raise ValueError(f"{needed}, not a folder.")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ValueError(f"{needed} with a name of at most {LONGEST_NAME} bytes.")
    if (path.exists() or path.is_symlink()) and not path.is_file():
        kind = "a folder" if path.is_dir() else "neither a file nor a new name"
        raise ValueError(f"{needed}, but this is {kind}.")
    return path


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
