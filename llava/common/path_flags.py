"""Flags that take paths or names of models: what each accepts, and the error for anything else."""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava.common.shown import shown

LONGEST_PATH = 4095
LONGEST_NAME = 255
"""Bytes of a path, and of one name in it; Linux takes no longer ones."""
_ON_THE_HUB = re.compile(r"(?:[\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Paths:
    """The paths that a flag accepts; as the `type` of argparse it reads one and refuses what cannot be one.

    Whether something lies there is for the program to say; only what lies there and is of the wrong kind is refused.
    A tilde in front stands for a home folder, for shells leave it as it is behind `--flag=`.

    Attributes:
        accepted: what is accepted, in words that stand behind "it must name".
        kind: `file`, `folder` or `either`.
        hub: whether names on the Hugging Face hub are accepted; these, and what is built in, stay as they are.
        empty: whether "" is accepted and stays.
        as_text: whether argparse gets text instead of a `Path`.
    """

    accepted: str
    kind: str
    hub: bool = False
    empty: bool = False
    as_text: bool = False

    def __call__(self, text: str) -> Any:
        """Read a value of a command line: a `Path`, or text where that, names on the hub or "" are accepted.

        Raises:
            argparse.ArgumentTypeError: if it can be no such path; names it and what is accepted.
        """
        try:
            path = self.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return path if self.hub or self.empty or self.as_text else Path(path)

    def read(self, text: str) -> str:
        """The path, with the home folder written out.

        Raises:
            ValueError: if it can be no such path; has no full stop and no flag.
        """
        if self.empty and not text:
            return text
        wrong = _unusable(text)
        if wrong is None and text.startswith("~") and not os.path.lexists(text):
            home = os.path.expanduser(text)
            wrong = f"nobody here is called {shown(text[1:].partition('/')[0])}" if home == text else _unusable(home)
            text = home
        wrong = wrong or self._other_kind(text)
        if wrong is not None:
            raise ValueError(f"it is {shown(text)}; it must name {self.accepted}, but {wrong}")
        return text

    def _other_kind(self, text: str) -> str | None:
        try:
            mode = os.stat(text).st_mode
        except OSError:
            return "a file's name does not end with a slash" if self.kind == "file" and text.endswith("/") else None
        if self.kind == "folder" and not stat.S_ISDIR(mode):
            return "this is a file" if stat.S_ISREG(mode) else "this is a pipe, socket or device"
        return "this is a folder" if self.kind == "file" and stat.S_ISDIR(mode) else None


def _unusable(text: str) -> str | None:
    """Why no file or folder can have this path; None if one can."""
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        return "this is not UTF-8; rename what it names"
    if not text.strip():
        return "this is empty or blank"
    if "\0" in text:
        return "this holds a NUL"
    if len(encoded) > LONGEST_PATH:
        return f"this has {len(encoded)} bytes, and paths have at most {LONGEST_PATH}"
    if any(len(name) > LONGEST_NAME for name in encoded.split(b"/")):
        return f"one name in it has more than {LONGEST_NAME} bytes"
    return None


MODEL = Paths("the folder of a model, or a model on the hub (owner/model)", "folder", hub=True)
FILE_TO_READ = Paths("a file", "file")
FOLDER_TO_READ = Paths("a folder", "folder")
TO_READ = Paths("a file or folder", "either")
FOLDER_OR_NONE = Paths("a folder", "folder", empty=True)
FILE_TO_WRITE = Paths("a file to write", "file")
OUTPUT = Paths("a file to write", "either")
"""A file to write whose kind the program itself looks at, in `llava.common.outputs`."""
FOLDER_TO_WRITE = Paths("a folder to write to", "folder")
TO_WRITE = Paths("a file or folder to write", "either")


def as_text(accepted: Paths) -> Paths:
    """The same paths, read as text."""
    return replace(accepted, as_text=True)


def require_model(name: str) -> None:
    """Check the name of a model, a tower or a tokenizer, wherever it stands, before the hub is asked for it.

    Raises:
        ValueError: if there is no folder of that name and none such can be on the hub.
    """
    try:
        place = MODEL.read(name)
    except ValueError as error:
        raise ValueError(f"A model is named wrongly: {error}.") from None
    if os.path.isdir(place):
        return
    if _ON_THE_HUB.fullmatch(name) is None or any(mark in name for mark in ("--", "..")) or name.endswith(".git"):
        raise ValueError(
            f"There is no folder {shown(name)}, and no model on the hub is called so; give the folder of a model, or a "
            "name on the hub (owner/model)."
        )


def read_paths(said: Mapping[str, object], accepted: Mapping[str, Paths]) -> dict[str, Any]:
    """Read the paths of a command line that argparse did not read.

    Args:
        said: values by the names of their flags, as far as they were given; others than text and lists of texts are
            passed over.
        accepted: types of the flags that hold paths.

    Returns:
        the paths by the names of their flags, with home folders written out.

    Raises:
        ValueError: for the first that cannot be one; names the flag, its value and what is accepted.
    """
    read: dict[str, Any] = {}
    for name, value in said.items():
        if name not in accepted or not isinstance(value, str | list):
            continue
        try:
            if isinstance(value, str):
                read[name] = accepted[name].read(value)
            else:
                read[name] = [accepted[name].read(path) for path in value]
        except ValueError as error:
            raise ValueError(f"--{name}: {error}.") from None
    return read
