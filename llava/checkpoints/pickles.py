"""Pickled files of a checkpoint: lists what unpickling them would call, and loads them with tensors alone allowed.

A pickle names functions that are called when it is read. `torch.load(weights_only=True)` knows the few that build
tensors and refuses every other; DeepSpeed reads its checkpoints without it. Two things stand before that:

- `require_safe_pickles` lists what every pickled file in a folder names, and refuses what is in no list below.
- `weights_only_loading` makes every `torch.load` inside it one of weights, DeepSpeed's own as well. It decides while
  the bytes are read, so a file that was exchanged after the first look runs nothing either.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.serialization import get_safe_globals, get_unsafe_globals_in_checkpoint, safe_globals

from llava.common.shown import first_of

SUFFIXES = frozenset((".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"))
TAGS = ("latest", "latest_universal")  # files in which DeepSpeed keeps the name of the folder that it reads
TRAINING_ARGUMENTS = "training_args.bin"
# Beyond what torch takes for safe by itself. Each is a plain record: of ZeRO's stage, of the loss scale, of where in a
# flat buffer a weight begins.
OF_DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
# Of `rng_state*.pth`; transformers opens these files with the same four.
OF_RANDOM_STATES = ("numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.dtypes.UInt32DType", "numpy.ndarray")
# Of the arguments of a Trainer: classes of these packages, which change with their versions. Neither this project nor
# transformers' Trainer opens that file; what else it names tells that somebody changed the checkpoint.
_OF_TRAINING_ARGUMENTS = re.compile(
    r"(?:accelerate|deepspeed|llava|transformers)\..+|builtins\.frozenset|datetime\.timedelta"
)
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")  # a pickle says which one it is of in its second byte
_DOTTED_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\.[A-Za-z_][A-Za-z0-9_.]*")
_LOOKED_AT = 64 * 2**20  # bytes of a file that is no checkpoint of torch's, to say what it asks for
# What a listing raises at instructions that torch.save does not write, and at a pickle without an end.
_FOREIGN = (pickle.UnpicklingError, EOFError, IndexError, struct.error, UnicodeDecodeError)


_REMEDY = (
    "A checkpoint that this project wrote holds no such thing: somebody else made or changed it. Do not open it; take "
    "up another checkpoint (--resume_from_checkpoint), or move this folder away to go on from the one before."
)


class UnsafePickleError(ValueError):
    """A file that would run code when it is opened, or of which that cannot be ruled out; nothing was opened.

    Attributes:
        what: file and fault, without what to do about it.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} {_REMEDY}")
        self.what = what


def require_safe_pickles(folder: str | Path) -> None:
    """Look at every pickled file in a folder and below, and at the names of folders that DeepSpeed follows.

    Symbolic links are followed. Nothing is unpickled; of a file's bytes only those of the pickle are read, not those of
    its tensors.

    Args:
        folder: folder of a checkpoint.

    Raises:
        UnsafePickleError: if a file names what is neither torch's nor in the lists of this module, is pickled in a way
            that cannot be looked through, or `latest` leads elsewhere; names file and global, and says what to do.
        ValueError: if a file is damaged.
    """
    folder = Path(folder)
    damaged: list[ValueError] = []
    tags = [folder / tag for tag in TAGS if os.path.lexists(folder / tag)]
    looks = [(_require_plain_tag, tag) for tag in tags] + [(_require_known, path) for path in _pickled_files(folder)]
    for look, path in looks:
        try:
            look(path)
        except UnsafePickleError:
            raise
        except ValueError as error:  # one behind it may be worse
            damaged.append(error)
    if damaged:
        raise damaged[0]


def _require_known(path: Path) -> None:
    foreign = sorted(set(_globals(path)) - {*OF_DEEPSPEED, *OF_RANDOM_STATES})
    if path.name == TRAINING_ARGUMENTS:
        foreign = [name for name in foreign if not _OF_TRAINING_ARGUMENTS.fullmatch(name)]
    if foreign:
        raise UnsafePickleError(_refusal(path, foreign))


@contextmanager
def weights_only_loading() -> Iterator[None]:
    """Every `torch.load` inside reads tensors and DeepSpeed's records alone, whatever its `weights_only` says.

    The environment and torch's list of safe classes are afterwards as they were.

    Raises:
        UnsafePickleError: if a file asks for anything else.
    """
    before = {name: os.environ.get(name) for name in (_FORCE, _FORCE_NOT)}
    os.environ.pop(_FORCE_NOT, None)
    os.environ[_FORCE] = "1"
    try:
        known = get_safe_globals()
        with safe_globals([one for one in _classes() if one not in known]):
            yield
    except pickle.UnpicklingError as error:
        details = [line.strip() for line in str(error).splitlines() if "rror:" in line or "GLOBAL" in line]
        raise UnsafePickleError(
            "A file of the checkpoint asks for something other than weights and was not opened; nothing of it was run "
            f"({details[-1] if details else type(error).__name__})."
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _classes() -> list[Any]:
    """Classes and names of `OF_DEEPSPEED` and `OF_RANDOM_STATES`; without DeepSpeed's where it is not installed."""
    found = []
    for name in (*OF_DEEPSPEED, *OF_RANDOM_STATES):
        module, _, attribute = name.rpartition(".")
        try:
            found.append((getattr(importlib.import_module(module), attribute), name))
        except ModuleNotFoundError as error:
            if error.name != "deepspeed":
                raise
    return found


def _pickled_files(folder: Path) -> Iterator[Path]:
    """Files below a folder that are pickled by their name, through links; each folder once.

    Raises:
        UnsafePickleError: if one is no regular file: reading a pipe or a device can wait for ever.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() not in SUFFIXES:
                continue
            if path.exists() and not path.is_file():
                raise UnsafePickleError(f"{str(path)!r} is a pipe or a device, not a file.")
            yield path


def _require_plain_tag(path: Path) -> None:
    if not path.is_file():
        raise UnsafePickleError(f"{str(path)!r} is no file with the name of a folder.")
    with path.open("rb") as file:
        tag = file.read(300).decode("utf-8", errors="replace").strip()
    if _PLAIN_NAME.fullmatch(tag):
        return
    said = f"{str(path)!r} names the folder {tag[:100]!r}, but DeepSpeed's are plain names such as global_step100."
    if tag.isprintable() and (tag in (".", "..") or "/" in tag or "\\" in tag):
        raise UnsafePickleError(said)
    raise ValueError(f"{said} The file is damaged.")


def _globals(path: Path) -> list[str]:
    """What a file names that torch does not take for safe by itself.

    Raises:
        UnsafePickleError: if it is pickled in another way than `torch.save` does it.
        ValueError: if it is damaged.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if not is_zip:
            raise _not_of_torch(path)
        with zipfile.ZipFile(path) as archive:
            packed = [item.filename for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise UnsafePickleError(f"{str(path)!r} is compressed ({packed[0]}); torch.save never does that.")
            for item in archive.infolist():
                if item.filename.endswith(".pkl"):
                    archive.read(item)  # compares the checksum, which torch does not: a flipped bit is damage
        return _listed(path)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{str(path)!r} is damaged and cannot be read ({reason}).") from error


def _listed(path: Path) -> list[str]:
    try:
        return get_unsafe_globals_in_checkpoint(str(path))
    except _FOREIGN as error:
        raise UnsafePickleError(_refusal(path, _named_in_zip(path), str(error) or type(error).__name__)) from error
    except ValueError as error:  # a TorchScript program
        raise UnsafePickleError(f"{str(path)!r} holds a program ({error}).") from error


def _not_of_torch(path: Path) -> ValueError:
    """The error for a file that is no zip: a pickle or an archive of an old torch, or none at all."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    if _is_archive(path):
        return UnsafePickleError(
            f"{str(path)!r} is an archive of an old torch, which cannot be looked through unopened."
        )
    named = _named_in(head)
    if not (head[:1] == b"\x80" and head[1:2] in _PROTOCOLS):  # among random bytes there are instructions, too
        named = [name for name in named if _DOTTED_NAME.fullmatch(name)]
        if not named:
            return ValueError(f"{str(path)!r} is damaged: it is no file of torch.save.")
    return UnsafePickleError(_refusal(path, named, "it is a bare pickle, not the zip that torch.save writes"))


def _is_archive(path: Path) -> bool:
    """Whether it is a tar that holds something; a file of zeros is an empty one by its format."""
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.next() is not None
    except tarfile.TarError:
        return False


def _named_in_zip(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [
            name
            for item in archive.infolist()
            if item.filename.endswith(".pkl") and item.file_size <= _LOOKED_AT
            for name in _named_in(archive.read(item))
        ]


def _named_in(data: bytes) -> list[str]:
    """What the pickles at the beginning of some bytes name, by every instruction that names something."""
    found: list[str] = []
    words: list[str] = []
    stream = io.BytesIO(data)
    try:
        while stream.tell() < len(data):  # an old torch.save writes several pickles one after the other
            for code, argument, _ in pickletools.genops(stream):
                if code.name in ("GLOBAL", "INST"):
                    found.append(str(argument).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    found.append(".".join(words[-2:]) if len(words) > 1 else "a name that it computes")
                elif code.name.startswith("EXT"):
                    found.append(f"extension {argument}")
                elif isinstance(argument, str):
                    words.append(argument)
    except ValueError:  # no pickle, or one that ends too early: what was named until then counts
        return found
    return found


def _refusal(path: Path, named: list[str], reason: str = "") -> str:
    asked = first_of([repr(name) for name in named], 5)
    what = f"would call {asked} when it is opened" if named else "is pickled in a way that cannot be looked through"
    return f"{str(path)!r} {what}{f' ({reason})' if reason else ''}, so it was not opened."
