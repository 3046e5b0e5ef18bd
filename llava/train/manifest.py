"""Manifest of a checkpoint: its files with sizes and digests, written with it and compared before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import xxhash

from llava.common.file_modes import follow_umask
from llava.common.json_files import write_json
from llava.train.readable import require_readable

MANIFEST_FILE = "manifest.json"
PIECE = 64 * 2**20
"""Bytes that have a digest of their own; the largest file that is read under `--verify_checkpoint quick`."""
VERIFY = ("full", "quick")
"""Values of `--verify_checkpoint`: all bytes of all files, or sizes and the bytes of files of at most one piece."""
_DIGEST = "xxh3_128"
_OF_EARLIER_VERSIONS = {"files"}
_FIELDS = _OF_EARLIER_VERSIONS | {"digest", "piece", "digests"}
_BUFFER = 4 * 2**20
_THREADS = 8


@dataclass(frozen=True)
class Manifest:
    """Sizes and digests of the files of a checkpoint.

    Attributes:
        sizes: bytes of each file, by its path inside the folder.
        digests: digests of each file's pieces in order; None in what earlier versions wrote.
        piece: bytes of a piece.
    """

    sizes: dict[str, int]
    digests: dict[str, list[str]] | None
    piece: int = PIECE

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            ValueError: if there is none, or it is none of this program's; says so in a few words.
        """
        path = Path(folder) / MANIFEST_FILE
        try:
            if not path.is_file():
                raise ValueError(f"{MANIFEST_FILE} is no file" if os.path.lexists(path) else f"no {MANIFEST_FILE}")
            text = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{MANIFEST_FILE} cannot be read: {error.strerror or error}") from error
        try:
            held = json.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{MANIFEST_FILE} cannot be read: it is not JSON") from error
        if not isinstance(held, dict) or set(held) not in (_OF_EARLIER_VERSIONS, _FIELDS):
            raise ValueError(f"{MANIFEST_FILE} cannot be read: it is not as this program writes it")
        sizes, digests, piece = held["files"], held.get("digests"), held.get("piece", PIECE)
        if not _are_sizes(sizes) or (set(held) == _FIELDS and not _are_digests(digests, sizes, piece, held["digest"])):
            raise ValueError(f"{MANIFEST_FILE} cannot be read: its entries are not sizes and {_DIGEST} digests")
        if not sizes:
            raise ValueError(f"{MANIFEST_FILE} names no files")
        return cls(sizes, digests, piece)


def seal(folder: str | Path) -> int:
    """Check every file of a folder, write it through to the disk, and leave a list of names, sizes and digests.

    The digests are taken before the files are forced onto the disk, from the pages that the operating system holds of
    what was just written; a file larger than the memory is read back from the disk.

    Returns:
        bytes of all files.

    Raises:
        OSError: if a file cannot be read back as what it is; names it.
    """
    folder = Path(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths.pop(MANIFEST_FILE, None)
    for path in paths.values():
        require_readable(path)
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    digests: dict[str, list[str]] = {name: [] for name in paths}
    jobs = [(name, start, length) for name, size in sizes.items() for start, length in _pieces(size, PIECE)]
    for (name, *_), digest in zip(jobs, _digests(folder, jobs), strict=True):
        if isinstance(digest, OSError):
            raise OSError(f"{paths[name]} cannot be read back ({digest.strerror}); is the disk sound?") from digest
        digests[name].append(digest)
    for path in paths.values():
        _flush(path)
    follow_umask(folder)
    held = {"digest": _DIGEST, "piece": PIECE, "files": sizes, "digests": digests}
    _flush(write_json(folder / MANIFEST_FILE, held, indent=1))
    _flush(folder)
    return sum(sizes.values())


def faults(folder: str | Path, largest: int | None = None) -> list[str]:
    """What is wrong with a folder that was sealed; empty if nothing is.

    Args:
        folder: folder of a checkpoint.
        largest: bytes of a file up to which its digest is compared; None compares all, -1 sizes alone.
    """
    folder = Path(folder)
    try:
        manifest = Manifest.read(folder)
    except ValueError as error:
        return [str(error)]
    found = [fault for name, size in manifest.sizes.items() if (fault := _other_size(folder / name, name, size))]
    if found or manifest.digests is None:
        return found
    names = [name for name, size in manifest.sizes.items() if largest is None or size <= largest]
    jobs = [(name, *piece) for name in names for piece in _pieces(manifest.sizes[name], manifest.piece)]
    expected = [digest for name in names for digest in manifest.digests[name]]
    wrong: dict[str, str] = {}
    for (name, *_), before, now in zip(jobs, expected, _digests(folder, jobs), strict=True):
        if isinstance(now, OSError):
            wrong.setdefault(name, f"{name} cannot be read: {now.strerror or now}")
        elif before != now:
            wrong.setdefault(name, f"{name} holds other bytes than when it was saved")
    return list(wrong.values())


def _other_size(path: Path, name: str, size: int) -> str | None:
    try:
        if not path.is_file():
            return f"{name} is missing" if not os.path.lexists(path) else f"{name} is no file"
        found = path.stat().st_size
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    return None if found == size else f"{name} has {found} bytes instead of {size}"


def _are_sizes(held: object) -> bool:
    return isinstance(held, dict) and all(
        type(size) is int
        and size >= 0
        and not PurePosixPath(name).is_absolute()
        and ".." not in PurePosixPath(name).parts
        for name, size in held.items()
    )


def _are_digests(held: object, sizes: dict[str, int], piece: object, kind: object) -> bool:
    if not isinstance(held, dict) or kind != _DIGEST or type(piece) is not int or piece <= 0:
        return False
    return held.keys() == sizes.keys() and all(
        isinstance(one, list) and len(one) == -(-sizes[name] // piece) for name, one in held.items()
    )


def _pieces(size: int, piece: int) -> list[tuple[int, int]]:
    """Where the pieces of a file begin, and their bytes."""
    return [(start, min(piece, size - start)) for start in range(0, size, piece)]


def _digests(folder: Path, jobs: list[tuple[str, int, int]]) -> Iterator[str | OSError]:
    """Digests of pieces of files, in order; what a piece could not be read for takes its place.

    Threads read and digest at once: both release Python's lock.
    """

    def digest(job: tuple[str, int, int]) -> str | OSError:
        try:
            return _digest(folder / job[0], job[1], job[2])
        except OSError as error:
            return error

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        yield from threads.map(digest, jobs)


def _digest(path: Path, start: int, length: int) -> str:
    found = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_BUFFER, length)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while length:
            count = file.readinto(buffer[: min(length, len(buffer))])
            if not count:
                raise OSError(None, f"it ends {length} bytes early", str(path))
            found.update(buffer[:count])
            length -= count
    return found.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
