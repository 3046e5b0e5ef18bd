"""A mixture of data files as one sequence of records, each file repeated by its weight (1 by default).

A mixture is a YAML file:

    sources:
      - {path: chats.json, image_folder: images/chats, weight: 1.0, name: chats}
      - {path: captions.json, weight: 0.25}
    seed: 0

Paths start at the YAML file's folder; without an `image_folder` images lie in that of the command line. A weight says
how often an epoch sees a record of the source: `n` records of weight `w` make `round(n * w)` samples, every record
`floor(w)` times, and the rest are drawn from them by `seed` alone. Every epoch has the same samples. The draw of a
larger weight holds that of a smaller one.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from llava.common.shown import printable, shown
from llava.common.yaml_files import read_yaml
from llava.data.cache import digest_text
from llava.data.json_stream import require_data_file
from llava.data.records import FAULTS_TO_SHOW, Record
from llava.data.store import RecordTable, open_records, record_of

MIXTURE_SUFFIXES = (".yaml", ".yml")
MOST_WEIGHT = 10_000
"""Largest weight of a source: one epoch sees each of its records so often."""
_KEYS = ("sources", "seed")
_SOURCE_KEYS = ("path", "image_folder", "weight", "name")


@dataclass(frozen=True)
class Source:
    """One file of a mixture.

    Attributes:
        path: in a format of `llava.data.json_stream`.
        image_folder: where its image names start; None for the folder of the command line.
        weight: how often an epoch sees a record of it.
        name: for reports; None for a file that stands alone.
    """

    path: Path
    image_folder: str | None = None
    weight: float = 1.0
    name: str | None = None


class RecordMix(Sequence[Record]):
    """The records of some sources, one source after the other, read from their tables when asked for.

    Args:
        sources: the files.
        tables: tables of the same files.
        seed: seed of the draws that fractional weights need.

    Raises:
        ValueError: if the weights leave nothing.
    """

    def __init__(self, sources: Sequence[Source], tables: Sequence[RecordTable], seed: int = 0) -> None:
        self.sources = tuple(sources)
        self.tables = tuple(tables)
        self.seed = seed
        rows = [draw_rows(len(table), source.weight, seed) for source, table in zip(sources, tables, strict=True)]
        self.counts = [len(drawn) for drawn in rows]
        self._tables_of = np.repeat(np.arange(len(rows), dtype=np.int32), self.counts)
        self._rows = np.concatenate(rows)
        if not len(self._rows):
            raise ValueError("The weights of the mixture leave no sample; give a source a larger one.")

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        table, row = self.place(index)
        source = self.sources[table]
        return record_of(self.tables[table].rows[row], source.image_folder, source.name)

    def place(self, index: int) -> tuple[int, int]:
        """Number of the table, and of the row in it, that a sample comes from."""
        index = operator.index(index)
        return int(self._tables_of[index]), int(self._rows[index])

    def column(self, name: str) -> NDArray[np.int64]:
        """A column of numbers, one for every sample."""
        parts = np.split(self._rows, np.cumsum(self.counts)[:-1])
        return np.concatenate([table.column(name)[rows] for table, rows in zip(self.tables, parts, strict=True)])

    @property
    def fingerprint(self) -> str:
        """Digest of the samples and their order: content of the files, weights and seed, but not paths."""
        facts = [f"{table.content} {source.weight!r}" for table, source in zip(self.tables, self.sources, strict=True)]
        return digest_text([*facts, str(self.seed)])

    def describe(self) -> str:
        """A line for every source: its records, weight and samples."""
        lines = []
        for source, table, count in zip(self.sources, self.tables, self.counts, strict=True):
            share = f", {count / len(self):.1%} of {len(self):,}" if len(self.sources) > 1 else ""
            folder = f", images in {printable(source.image_folder)}" if source.image_folder else ""
            name = printable(source.name or source.path)
            begun = int((table.column("left_out") > 0).sum())
            folder += f"; the first turn of {begun:,} records is the assistant's and left out" if begun else ""
            lines.append(f"{name}: {len(table):,} records x {source.weight:g} = {count:,} samples{share}{folder}")
        return "\n".join(lines)


def open_mix(path: str | Path, cache_dir: str | Path | None = None) -> RecordMix:
    """Open a data file, or a YAML mixture of them.

    Args:
        path: the file.
        cache_dir: where tables lie; None for the default of `cached_table`.

    Raises:
        ValueError: if a file is missing or faulty.
    """
    path = Path(path)
    sources, seed = read_mixture(path) if is_mixture(path) else ([Source(path)], 0)
    return RecordMix(sources, [open_records(source.path, cache_dir) for source in sources], seed)


def is_mixture(path: Path) -> bool:
    """Whether a file is a mixture, by the ending of its name."""
    return path.suffix.lower() in MIXTURE_SUFFIXES


def draw_rows(count: int, weight: float, seed: int) -> NDArray[np.int64]:
    """Rows of a source of `count` records: whole copies, then the drawn rest in the order of the file."""
    copies, rest = divmod(round(count * weight), count)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:rest].sort().values
    return np.concatenate([np.tile(np.arange(count), copies), drawn.numpy()])


def read_mixture(path: Path) -> tuple[list[Source], int]:
    """The sources of a YAML mixture and its seed.

    Raises:
        ValueError: if the file is missing or not YAML, for unknown keys, values of the wrong kind and missing
            data files; tells all that is wrong.
    """
    if not os.path.lexists(path):
        raise ValueError(f"There is no mixture {shown(str(path))}; check --data_path.")
    data = read_yaml(path)
    entries = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a list under the key 'sources', each entry with a 'path'.")
    seed = data.get("seed", 0)
    faults = _unknown_keys(data, _KEYS, "The mixture")
    if type(seed) is not int or not 0 <= seed < 2**63:
        faults.append(f"The seed is {shown(seed)}; it must be a whole number from 0 up.")
    for number, entry in enumerate(entries):
        faults += _faults(entry, number, path.parent)
    if faults:
        listed = "\n  ".join(faults[:FAULTS_TO_SHOW])
        raise ValueError(f"{path} has {len(faults)} fault(s):\n  {listed}")
    return [_source(entry, path.parent) for entry in entries], seed


def _source(entry: dict[str, Any], folder: Path) -> Source:
    images = entry.get("image_folder")
    return Source(
        path=folder / entry["path"],
        image_folder=None if images is None else str(folder / images),
        weight=float(entry.get("weight", 1.0)),
        name=entry.get("name") or entry["path"],
    )


def _faults(entry: Any, number: int, folder: Path) -> list[str]:
    """All that is wrong with an entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return [f"Source {number} is {shown(entry)}; it must be a mapping with a 'path'."]
    name, weight = f"Source {shown(entry['path'])}", entry.get("weight", 1.0)
    faults = _unknown_keys(entry, _SOURCE_KEYS, name)
    if type(weight) not in (int, float) or not 0 <= weight <= MOST_WEIGHT:
        faults.append(f"{name} has the weight {shown(weight)}; it must be a number from 0 up, {MOST_WEIGHT:,} at most.")
    faults += [
        f"{name}: {key!r} is {shown(entry[key])}; it must be text."
        for key in ("image_folder", "name")
        if not isinstance(entry.get(key), str | None)
    ]
    try:
        require_data_file(folder / entry["path"], "paths start at the folder of the mixture")
    except ValueError as error:
        faults.append(str(error))
    return faults


def _unknown_keys(data: dict[Any, Any], known: Sequence[str], name: str) -> list[str]:
    return [
        f"{name} has the unknown key {shown(key)}; known are {', '.join(known)}." for key in data if key not in known
    ]
