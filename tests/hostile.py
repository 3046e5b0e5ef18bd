"""Files that write a marker when they are executed, in every shape in which a pickle can lie in a checkpoint."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Writes:
    """Pickled, it asks for `os.system` with a command that makes the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def new_zip(path: Path, marker: Path) -> None:
    """As torch.save writes it today."""
    torch.save({"weight": torch.zeros(2), "hidden": Writes(marker)}, path)


def beside_good_records(path: Path, marker: Path) -> None:
    """DeepSpeed's own classes and the hostile call in one file."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    torch.save({"loss_scaler": LossScaler(1.0), "optimizer_state_dict": [Writes(marker)]}, path)


def old_pickle(path: Path, marker: Path) -> None:
    """As torch.save wrote it before version 1.6."""
    torch.save({"hidden": Writes(marker)}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, marker: Path) -> None:
    """By the pickle module alone."""
    path.write_bytes(pickle.dumps(Writes(marker), protocol=4))


def text_pickle(path: Path, marker: Path) -> None:
    """Protocol 0 has no header."""
    path.write_bytes(pickle.dumps(Writes(marker), protocol=0))


def old_tar(path: Path, marker: Path) -> None:
    """As torch.save wrote it before version 0.1.10."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Writes(marker), protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def around(path: Path, data: bytes, name: str = "data.pkl", compression: int = zipfile.ZIP_STORED) -> None:
    """A zip with this pickle, laid out as torch.save does it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"archive/{name}", data)
        if name != "data.pkl":
            archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")


def instance_opcode(path: Path, marker: Path) -> None:
    """INST names and calls in one instruction."""
    around(path, f"(S'touch {marker}'\nios\nsystem\n.".encode())


def object_opcode(path: Path, marker: Path) -> None:
    """OBJ calls what lies on the stack."""
    around(path, f"(cos\nsystem\nS'touch {marker}'\no.".encode())


def computed_name(path: Path, marker: Path) -> None:
    """STACK_GLOBAL takes the name from the stack, where it can be put together."""
    command = f"touch {marker}".encode()
    data = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R."
    around(path, data)


def old_name(path: Path, marker: Path) -> None:
    """`__builtin__`, as Python 2 called it, is mapped to `builtins` when it is read."""
    word = f"open({str(marker)!r}, 'w')".encode()
    around(path, b"\x80\x02c__builtin__\neval\nX" + struct.pack("<I", len(word)) + word + b"\x85R.")


def extension_code(path: Path, marker: Path) -> None:
    """EXT1 names a number of the registry of extensions."""
    around(path, b"\x80\x02\x82\x01.")


def named_persistent_id(path: Path, marker: Path) -> None:
    """PERSID hands a text of the file's to whoever loads it."""
    around(path, b"\x80\x02Pstorage\n.")


def program(path: Path, marker: Path) -> None:
    """TorchScript: torch.load would hand the file to torch.jit.load."""
    around(path, pickle.dumps(Writes(marker), protocol=2), "constants.pkl")


def compressed(path: Path, marker: Path) -> None:
    """Could unpack to any size."""
    around(path, pickle.dumps(Writes(marker), protocol=2), compression=zipfile.ZIP_DEFLATED)


def pickle_before_zip(path: Path, marker: Path) -> None:
    """A pickle to whoever reads from the beginning, a zip of harmless weights to whoever looks at the end."""
    torch.save({"weight": torch.zeros(2)}, path)
    path.write_bytes(pickle.dumps(Writes(marker), protocol=2) + path.read_bytes())


def getattr_of_torch(path: Path, marker: Path) -> None:
    """Only names below `torch` and `builtins`, which lead to everything."""
    word = f"open({str(marker)!r}, 'w')".encode()
    around(
        path,
        b"\x80\x02ctorch.serialization\npickle\n0cbuiltins\neval\nX" + struct.pack("<I", len(word)) + word + b"\x85R.",
    )


SHAPES: dict[str, Callable[[Path, Path], None]] = {
    shape.__name__: shape
    for shape in (
        new_zip,
        beside_good_records,
        old_pickle,
        bare_pickle,
        text_pickle,
        old_tar,
        instance_opcode,
        object_opcode,
        computed_name,
        old_name,
        extension_code,
        named_persistent_id,
        program,
        compressed,
        pickle_before_zip,
        getattr_of_torch,
    )
}
