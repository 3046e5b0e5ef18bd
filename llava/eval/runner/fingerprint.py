"""Digests of a checkpoint's files by name, size and content; paths and dates do not enter.

Of a weight file a sample is read: of each tensor in a `.safetensors` file, and of the checksums in a `.bin` file. That
takes a moment, even of a model that takes minutes to load, and tells two trainings of one model apart.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llava.checkpoints.contents import Checkpoint
from llava.checkpoints.lora import NON_LORA_FILE
from llava.checkpoints.opening import resolve
from llava.checkpoints.tokenizer import TOKENIZER_FILES
from llava.model.weights import weight_files

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "adapter_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer_config.json",
    *TOKENIZER_FILES,
)
"""Files beside the weights that change answers."""

_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin", NON_LORA_FILE)
_SAMPLE = 512
_SAMPLES = 64
_LARGEST_HEADER = 100_000_000

Fingerprint = dict[str, list[Any]]
"""Size and digest of each file, by what it belongs to and its name."""


def open_checkpoint(model_path: str, model_base: str | None) -> tuple[Any, Fingerprint]:
    """The configuration that a model will have, and the fingerprint of its files, without loading it.

    Raises:
        ValueError: if there is nothing to open.
    """
    checkpoint, base = resolve(model_path, model_base)
    config = checkpoint.config if checkpoint.config is not None or base is None else base.config
    return config, fingerprint(checkpoint, base)


def fingerprint(checkpoint: Checkpoint, base: Checkpoint | None) -> Fingerprint:
    """The files of a model, of its base, and of its towers where these are folders.

    Raises:
        ValueError: if a file cannot be read.
    """
    found: Fingerprint = {}
    for role, part in (("model", checkpoint), ("base", base)):
        if part is None:
            continue
        weights = part.files or tuple(part.folder / name for name in _ADAPTERS)
        found |= _of_files(role, part.folder, weights)
        for kind in ("vision", "image", "video"):
            tower = getattr(part.config, f"mm_{kind}_tower", None)
            if tower and Path(tower).is_dir():
                found |= _of_files(f"{kind} tower", Path(tower), tuple(weight_files(tower)))
    return found


def _of_files(role: str, folder: Path, weights: tuple[Path, ...]) -> Fingerprint:
    files = dict.fromkeys((folder / name for name in SMALL_FILES), _digest_of_all)
    files |= dict.fromkeys(weights, _digest_of_sample)
    try:
        return {
            f"{role}/{path.name}": [path.stat().st_size, read(path)] for path, read in files.items() if path.is_file()
        }
    except OSError as error:
        raise ValueError(f"A file of the {role} in {folder} cannot be read: {error}") from error


def _digest_of_all(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_of_sample(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = path.stat().st_size
        for content in (*_directory(file), *_samples(file, size)):
            digest.update(content)
    return digest.hexdigest()


def _directory(file: BinaryIO) -> Iterator[bytes]:
    """Names and checksums of the tensors in a file that torch wrote, which is a zip archive."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield json.dumps([[entry.filename, entry.file_size, entry.CRC] for entry in archive.infolist()]).encode()


def _samples(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The header of a safetensors file and a piece out of the middle of each tensor; of others, pieces all over it."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length) if length <= min(size, _LARGEST_HEADER) else b""
    spans = _spans(header)
    if spans:
        yield header
    first = 8 + length if spans else 0
    for start, end in spans or [(size * i // _SAMPLES, size * (i + 1) // _SAMPLES) for i in range(_SAMPLES)]:
        file.seek(first + max(start, (start + end - _SAMPLE) // 2))
        yield file.read(min(_SAMPLE, end - start))


def _spans(header: bytes) -> list[tuple[int, int]]:
    """Where the tensors of a safetensors file begin and end behind the header; empty if it is none."""
    try:
        tensors = json.loads(header)
        return sorted(tuple(tensor["data_offsets"]) for name, tensor in tensors.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError):
        return []
