"""Whether the files of a checkpoint are whole: checked when it was written, and again before it is used."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

MANIFEST_FILE = "manifest.json"
_PICKLES = (".bin", ".pt", ".pth")


def seal(folder: str | Path) -> int:
    """Check every file of a folder, write it through to the disk, and leave a list of names and sizes.

    Returns:
        bytes of all files.

    Raises:
        OSError: if a file cannot be read back as what it is; names it.
    """
    folder = Path(folder)
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_FILE:
            _require_readable(path)
            _flush(path)
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    target = folder / MANIFEST_FILE
    target.write_text(json.dumps({"files": sizes}, indent=1) + "\n", encoding="utf-8")
    _flush(target)
    _flush(folder)
    return sum(sizes.values())


def faults(folder: str | Path) -> list[str]:
    """What is wrong with a folder that was sealed; empty if nothing is."""
    folder = Path(folder)
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return [f"no {MANIFEST_FILE}"]
    except (ValueError, KeyError, TypeError):
        return [f"{MANIFEST_FILE} cannot be read"]
    found = []
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
    return found


def _require_readable(path: Path) -> None:
    """A file that was cut short has no end: safetensors says how long it must be, a zip's directory stands last."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        elif path.suffix in _PICKLES and not zipfile.is_zipfile(path):
            raise OSError("it is no file of torch.save")
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(f"{path} was not written whole ({error}); is the disk full?") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
