"""Checks that a weight, state or JSON file is whole, by the lengths and checksums of its own format."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from llava.common.outside_files import DAMAGED
from llava.model.finite import not_finite

_PICKLES = (".bin", ".pt", ".pth")
# NotImplementedError, of a zip of another kind, is a RuntimeError.
_DAMAGED = (*DAMAGED, SafetensorError, zipfile.BadZipFile, zipfile.LargeZipFile)


def require_readable(path: Path) -> None:
    """Refuse a file that was cut short: safetensors says how long it must be, a zip's directory stands last.

    Raises:
        OSError: names the file.
    """
    fault = format_fault(path)
    if fault is not None:
        raise OSError(f"{path} was not written whole ({fault}); is the disk full?")


def format_fault(path: Path, thorough: bool = False) -> str | None:
    """What is wrong with a weight, state or JSON file by its own format; None if nothing is seen.

    Args:
        path: files of other kinds are not looked at.
        thorough: read all of it. What `torch.save` wrote holds checksums; safetensors holds none, so that only numbers
            that are not finite tell of damage.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys()) if thorough else []
                odd = (name for name in names if not_finite([(name, file.get_tensor(name))]))
                return next((f"{name!r} is not finite" for name in odd), None)
        if path.suffix in _PICKLES:
            if not zipfile.is_zipfile(path):
                return "it is no file of torch.save"
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip() if thorough else None
            return None if broken is None else f"the checksum of its part {broken!r} is another"
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except _DAMAGED as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return None
