"""A cache of Arrow tables on disk: each is built once and memory-mapped by every later run.

A table lies in a folder of its own, named by a key that stands for everything its content depends on. It is written
under another name and renamed when it is whole, and the sizes and digests of its files lie beside it: half a table is
never taken for a table, whoever is killed and whoever builds at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llava.common.atomic_write import write_errors
from llava.common.json_files import write_json

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

CONTENTS = "contents.json"


def default_cache_dir() -> Path:
    """`duet_llava` in the cache folder of the `datasets` library, which HF_DATASETS_CACHE and HF_HOME move."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "duet_llava"


def digest_file(path: Path) -> str:
    """Digest of a file's content; its name and dates do not enter."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def digest_text(parts: Iterable[str]) -> str:
    """Digest of several texts in order; the same characters split elsewhere have another digest."""
    return hashlib.blake2b(json.dumps(list(parts)).encode(), digest_size=16).hexdigest()


def cached_table(cache_dir: str | Path | None, key: str, build: Callable[[Path], None]) -> Dataset:
    """The table of a key, built if it is not there yet. Any number of processes may ask at once: one builds.

    Args:
        cache_dir: where tables lie; None for `default_cache_dir()`.
        key: name of the table's folder; must change whenever the table would.
        build: writes the table into a folder, as one or more `*.arrow` files, to be read in the order of their names.

    Raises:
        OSError: if the folder cannot be written.
        Exception: what `build` raises; nothing is left then.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    table = _open(folder / key)
    return _build(folder, key, build) if table is None else table


def _build(folder: Path, key: str, build: Callable[[Path], None]) -> Dataset:
    from filelock import FileLock

    target = folder / key
    try:
        (folder / ".locks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"The cache folder {str(folder)!r} cannot be made ({error}); name another cache folder."
        ) from error
    with FileLock(folder / ".locks" / key):
        table = _open(target)  # another process may have been quicker
        if table is not None:
            return table
        for left_over in (target, *folder.glob(f".{key}.*")):
            shutil.rmtree(left_over, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder))
        with write_errors(target), contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            build(temporary)
            files = {path.name: _facts(path) for path in sorted(temporary.glob("*.arrow"))}
            write_json(temporary / CONTENTS, files, indent=1)
            temporary.chmod(folder.stat().st_mode & 0o777)  # temporary folders are private
            temporary.rename(target)
        table = _open(target)
    if table is None:
        raise OSError(
            f"{str(target)!r} cannot be read back right after writing; check the disk, or name another folder."
        )
    return table


def _open(target: Path) -> Dataset | None:
    """Map a table; None if there is none, or none that is whole."""
    if not target.is_dir():
        return None
    import datasets
    from pyarrow import ArrowException

    try:
        files = json.loads((target / CONTENTS).read_text(encoding="utf-8"))
        if not files:
            raise ValueError("it names no files")
        changed = [name for name, facts in files.items() if _facts(target / name) != facts]
        if changed:
            raise ValueError(f"{changed[0]} is not what was written")
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(target / name)) for name in files])
    except (OSError, ValueError, AttributeError, ArrowException) as error:
        logger.warning("The cached table %s is damaged (%s) and is built again.", target, error)
        return None


def _facts(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "blake2b": digest_file(path)}
