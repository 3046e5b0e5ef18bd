"""The conversations of one file as a memory-mapped Arrow table.

A list of a million `Record`s is gigabytes of Python objects, and every data-loading worker that counts references to
them makes its own copy. The pages of a mapped file are shared by all processes.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llava.data import json_stream, media, media_keys, records, turns
from llava.data.cache import cached_table, digest_file, digest_text
from llava.data.records import Record, iterate_records

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordTable:
    """All records of one file, in its order.

    Attributes:
        path: the file.
        content: digest of what it holds, wherever it lies and whatever its date.
        key: key of the table in the cache.
        rows: columns `id`, `turns`, `images`, `videos`, `system`, `num_words`, `num_images`, `num_videos`, `left_out`
            and `marks_as_text`, the number of these.
    """

    path: Path
    content: str
    key: str
    rows: Dataset

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> NDArray[np.int64]:
        """A column of numbers."""
        return self.rows.data.column(name).to_numpy().astype(np.int64)


def open_records(path: str | Path, cache_dir: str | Path | None = None) -> RecordTable:
    """Map the records of a data file; read and check it first if that was never done.

    Args:
        path: the file.
        cache_dir: where tables lie; None for the default of `cached_table`.

    Raises:
        ValueError: if the file or a record is not in LLaVA's format; see `iterate_records`.
    """
    path = Path(path)
    json_stream.require_data_file(path, "check --data_path")
    with json_stream.reading(path):
        content = digest_file(path)
    code = source_of(json_stream, media, media_keys, records, turns, sys.modules[__name__])
    key = "records-" + digest_text([content, code])
    return RecordTable(path, content, key, cached_table(cache_dir, key, lambda folder: _write(path, folder)))


def row_of(record: Record) -> dict[str, Any]:
    """A record as a row of the table."""
    numbers = {"num_words": record.num_words, "num_images": len(record.images), "num_videos": len(record.videos)}
    numbers["left_out"] = record.left_out
    lists = {"turns": list(record.turns), "images": list(record.images), "videos": list(record.videos)}
    return {"id": record.id, **lists, "system": record.system, **numbers}


def record_of(
    row: dict[str, Any], image_folder: str | None = None, source: str | None = None, video_folder: str | None = None
) -> Record:
    """The record that a row was made of; folders and source are not in the table, mixtures that share it differ."""
    own = {"system": row["system"], "left_out": row["left_out"]}
    own |= {"videos": tuple(row["videos"]), "video_folder": video_folder}
    return Record(row["id"], tuple(row["turns"]), tuple(row["images"]), image_folder, source, **own)


def source_of(*modules: ModuleType) -> str:
    """Source text of some modules, for cache keys: after an edit they may make other tables of the same input."""
    return "\n".join(inspect.getsource(module) for module in modules)


def _write(path: Path, folder: Path) -> None:
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter
    from tqdm import tqdm

    logger.info("Reading and checking %s; this is done once.", path)
    texts, number = List(Value("string")), Value("int32")
    kinds = {"id": Value("string"), "turns": texts, "images": texts, "videos": texts, "system": Value("string")}
    kinds |= {"num_words": number, "num_images": number, "num_videos": number, "left_out": number}
    kinds["marks_as_text"] = number
    rows: Iterator[Record] = tqdm(iterate_records(path), desc=f"Reading {path.name}", unit=" records", disable=None)
    with ArrowWriter(path=str(folder / "records.arrow"), features=Features(kinds)) as writer:
        for record in rows:
            writer.write(row_of(record) | {"marks_as_text": len(record.marks_as_text)})
        writer.finalize()
