"""Checks of output paths: never a file that the command reads, and no folder of another program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

MADE_BY = ".made-by"
"""A file that names the program that made the folder it lies in."""

MODEL_FILES = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.model",
    "*config*.json",
    "*index.json",
    "*token*.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    "train*.json",
    "run_facts.json",
    "*manifest*.json",
)
"""What a model or a checkpoint consists of."""

Place = str | Path | None


def require_apart(outputs: Mapping[str, Place], inputs: Iterable[Place]) -> None:
    """Refuse files to write that are folders, that are read by the same command, or that are one file twice.

    Args:
        outputs: paths by flag; None or "" where the flag was not given.
        inputs: files, and folders of models, of which `MODEL_FILES` count. What is no path here, such as a name on the
            hub or a preset, is passed over.

    Raises:
        ValueError: naming the flag. Links, also hard ones, are seen through.
    """
    read = [Path(place) for place in inputs if place and Path(place).exists()]
    seen: dict[Path, str] = {}
    for flag, given in outputs.items():
        if not given:
            continue
        path = Path(given)
        if path.is_dir():
            raise ValueError(f"{flag} is {str(path)!r}, which is a folder; name a file.")
        other = seen.setdefault(path.resolve(), flag)
        if other != flag:
            raise ValueError(f"{other} and {flag} name the same file {str(path)!r}; give each its own.")
        held = next((place for place in read if _belongs(path, place)), None)
        if held is not None:
            inside = f"a file of {str(held)!r}, which" if held.is_dir() else "which"
            raise ValueError(f"{flag} is {str(path)!r}, {inside} this command reads; name another file.")


def require_folder(flag: str, path: Path | None) -> None:
    """Refuse a file to write whose folder is not there; None, of a flag that was not given, passes.

    Raises:
        ValueError: naming flag and folder.
    """
    if path and not path.resolve().parent.is_dir():
        raise ValueError(f"{flag} names a file in {str(path.parent)!r}, which is not a folder; make it first.")


def _belongs(path: Path, place: Path) -> bool:
    """Whether an output that exists is an input, or a file of a model's folder that is one."""
    if not path.is_file():
        return False
    if not place.is_dir():
        return path.samefile(place)
    files = (file for file in place.iterdir() if any(fnmatch(file.name, pattern) for pattern in MODEL_FILES))
    return any(file.is_file() and path.samefile(file) for file in files)


def claim_folder(folder: Path, program: str, flag: str) -> None:
    """Make a folder a program's own, or refuse one that holds anything the program did not make.

    Args:
        folder: made if need be.
        program: written into its `MADE_BY`.
        flag: that named the folder, for the error.

    Raises:
        ValueError: if it is a file, or not empty and of another program or nobody's.
    """
    marker = folder / MADE_BY
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{flag} is {str(folder)!r}, which is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        made_by = marker.read_text(encoding="utf-8", errors="replace").strip() if marker.is_file() else ""
        if made_by != program:
            raise ValueError(
                f"{flag} is {str(folder)!r}, which is not empty and was not made by {program}; nothing in it was "
                "changed. Name a folder that is empty or new."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{program}\n", encoding="utf-8")
