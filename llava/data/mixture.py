"""Several data files as one sequence of records: named on a command line, or in a YAML mixture.

A mixture of this project repeats each file by its weight (1 by default):

    sources:
      - {path: chats.json, image_folder: images/chats, weight: 1.0, name: chats}
      - {path: films.json, video_folder: films, weight: 0.25}
    seed: 0

LLaVA-NeXT's takes a part of each file:

    datasets:
      - {json_path: chats.json, sampling_strategy: all}
      - {json_path: films.json, sampling_strategy: "first:10%"}

Every key of an entry may stand in either kind; see `llava.data.mixture_files`. Paths start at the YAML file's folder;
without folders of its own, a source's images and videos lie in those of the command line. A weight says how often an
epoch sees a record of the source: `n` records of weight `w` make `round(n * w)` samples, every record `floor(w)` times,
and the rest are drawn from them by `seed` alone. Every epoch has the same samples. The draw of a larger weight holds
that of a smaller one.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

from llava.common.shown import printable
from llava.data.cache import digest_text
from llava.data.mixture_files import ALL, Source, named_sources, part_of
from llava.data.records import Record
from llava.data.store import RecordTable, open_records, record_of


class RecordMix(Sequence[Record]):
    """The records of some sources, one source after the other, read from their tables when asked for.

    Args:
        sources: the files.
        tables: tables of the same files.
        seed: seed of the draws that fractional weights and random parts need, of sources without one of their own.

    Raises:
        ValueError: if the weights leave nothing.
    """

    def __init__(self, sources: Sequence[Source], tables: Sequence[RecordTable], seed: int = 0) -> None:
        self.sources = tuple(sources)
        self.tables = tuple(tables)
        self.seed = seed
        pairs = list(zip(self.sources, self.tables, strict=True))
        rows = [rows_of(len(table), source, self._seed(source)) for source, table in pairs]
        self.counts = [len(drawn) for drawn in rows]
        self._tables_of = np.repeat(np.arange(len(rows), dtype=np.int32), self.counts)
        self._rows = np.concatenate(rows)
        if not len(self._rows):
            raise ValueError("The weights of the mixture leave no sample; give a source a larger one.")

    def _seed(self, source: Source) -> int:
        return self.seed if source.seed is None else source.seed

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
        return record_of(self.tables[table].rows[row], source.image_folder, source.name, source.video_folder)

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
        """Digest of the samples and their order: content of the files, weights, parts and seeds, but not paths."""
        facts = []
        for table, source in zip(self.tables, self.sources, strict=True):
            part = "" if source.part == ALL else f" {source.part}"
            seed = "" if self._seed(source) == self.seed else f" seed {source.seed}"
            facts.append(f"{table.content} {source.weight!r}{part}{seed}")
        return digest_text([*facts, str(self.seed)])

    def describe(self) -> str:
        """A line for every source: its records, weight and samples."""
        lines = []
        for source, table, count in zip(self.sources, self.tables, self.counts, strict=True):
            share = f", {count / len(self):.1%} of {len(self):,}" if len(self.sources) > 1 else ""
            folder = f", images in {printable(source.image_folder)}" if source.image_folder else ""
            folder += f", videos in {printable(source.video_folder)}" if source.video_folder else ""
            name = printable(source.name or source.path)
            begun, words = (int((table.column(name) > 0).sum()) for name in ("left_out", "marks_as_text"))
            folder += f"; the first turn of {begun:,} records is the assistant's and left out" if begun else ""
            folder += f"; marks such as <image> are text in {words:,} records without media" if words else ""
            part = "" if source.part == ALL else f" ({source.part})"
            lines.append(f"{name}: {len(table):,} records{part} x {source.weight:g} = {count:,} samples{share}{folder}")
        return "\n".join(lines)


def open_mix(path: str | Path | Sequence[str | Path], cache_dir: str | Path | None = None) -> RecordMix:
    """Open data files, YAML mixtures of them among these.

    Args:
        path: one file, or several, whose records follow each other; see `named_sources`.
        cache_dir: where tables lie; None for the default of `cached_table`.

    Raises:
        ValueError: if a file is missing or faulty.
    """
    sources = named_sources([path] if isinstance(path, str | Path) else path)
    seeds = [source.seed for source in sources if source.seed is not None]
    return RecordMix(sources, [open_records(source.path, cache_dir) for source in sources], seeds[0] if seeds else 0)


def rows_of(count: int, source: Source, seed: int) -> NDArray[np.int64]:
    """Rows of a source of `count` records that an epoch sees: its part, each row as often as the weight says."""
    part = part_of(count, source.part, seed)
    return part[draw_rows(len(part), source.weight, seed)]


def draw_rows(count: int, weight: float, seed: int) -> NDArray[np.int64]:
    """Rows of a source of `count` records: whole copies, then the drawn rest in the order of the file."""
    copies, rest = divmod(round(count * weight), count)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:rest].sort().values
    return np.concatenate([np.tile(np.arange(count), copies), drawn.numpy()])
