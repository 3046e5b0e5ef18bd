"""Measured rows: the result files of one model under one compression, gathered by benchmark."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from llava.compression.config import CompressionConfig, presets
from llava.eval.results import Result
from llava.eval.tables.published import UNCOMPRESSED

_FAMILIES = {
    "video-llava-7b": r"video-?llava-?7b",
    "llava-next-7b": r"llava-?(v?1\.6|next)-(vicuna-|mistral-)?7b",
    "llava-1.5-13b": r"llava-?v?1\.5-13b",
    "llava-1.5-7b": r"llava-?v?1\.5-7b",
    "qwen2.5-vl-7b": r"qwen2\.5-?vl-7b",
}
_PLACES = re.compile(r"finetune|pretrain|lora|merged|checkpoint-\d+")


@dataclass(frozen=True)
class Cell:
    """The scores of one model, compression and benchmark, one of each run.

    Attributes:
        scores: headline numbers; empty where only a server or a judge can tell.
        answered, questions: over all runs.
        judges: models that graded, if any.
    """

    scores: tuple[float, ...]
    answered: int
    questions: int
    judges: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over runs; None without a score."""
        return mean(self.scores) if self.scores else None

    @property
    def complete(self) -> bool:
        """Whether every question was answered in every run."""
        return self.answered == self.questions


@dataclass(frozen=True)
class MeasuredRow:
    """One model under one compression.

    Attributes:
        model: path or hub name.
        compression: name, as the results give it.
        config: what it is.
        cells: by name of the benchmark.
        titles: column of each benchmark.
        tokens: visual tokens a decoder layer saw, mean over the benchmarks; None where no question had an image.
    """

    model: str
    compression: str
    config: Mapping[str, Any]
    cells: Mapping[str, Cell]
    titles: Mapping[str, str]
    tokens: float | None

    @property
    def uncompressed(self) -> bool:
        """Whether nothing was compressed."""
        return self.compression == UNCOMPRESSED or not any(self.config.values())

    @property
    def family(self) -> str:
        """Of the model, see `family`."""
        return family(self.model)

    @property
    def short_model(self) -> str:
        """Last telling part of the model's path."""
        return _telling_part(self.model)

    def scores(self) -> dict[str, float]:
        """Mean score of every benchmark that has one."""
        return {name: cell.mean for name, cell in self.cells.items() if cell.mean is not None}

    def is_preset(self, name: str | None) -> bool:
        """Whether the compression is a preset, by its name or by what it does."""
        if name is None:
            return False
        return self.compression == name or _plain(self.config) == CompressionConfig.from_preset(name).to_dict()

    @property
    def training(self) -> str:
        """What the model was trained with: `uncompressed`, `same` (what it was measured with) or `other`.

        The `config.json` of a local model tells; of another one its name, as `scripts/reproduce.sh` gives it:
        `llava-v1.5-7b-duet-192`.
        """
        carried = _carried(Path(self.model))
        if carried is None:
            name = _named_preset(self.model)
            carried = {} if name is None else CompressionConfig.from_preset(name).to_dict()
        if not any(carried.values()):
            return "uncompressed"
        return "same" if _plain(carried) == _plain(self.config) else "other"


def measured_rows(results: Iterable[Result]) -> list[MeasuredRow]:
    """Results gathered into rows, in the order in which a model and a compression first appear."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.model, result.compression].append(result)
    return [_row(model, compression, group) for (model, compression), group in groups.items()]


def family(model: str) -> str:
    """What models are compared within: size and version of a known one, else the name without preset and folders.

    >>> family("./checkpoints/reproduce/llava-v1.5-7b-duet-192/finetune")
    'llava-1.5-7b'
    """
    text = model.lower().replace("_", "-")
    for name, pattern in _FAMILIES.items():
        if re.search(pattern, text):
            return name
    return _telling_part(model).removesuffix(f"-{_named_preset(model)}")


def preset_of(config: Mapping[str, Any] | None) -> str | None:
    """The first preset that equals a configuration; None if none does."""
    plain = _plain(config)
    return next((name for name in presets() if CompressionConfig.from_preset(name).to_dict() == plain), None)


def find_baseline(row: MeasuredRow, rows: Sequence[MeasuredRow], benchmarks: Iterable[str]) -> MeasuredRow | None:
    """The uncompressed row that a row is compared with: of the same model, else of the same family.

    Args:
        row: any.
        rows: all that were measured.
        benchmarks: that the baseline must have a score of.
    """
    needed = set(benchmarks)
    whole = [
        other
        for other in rows
        if other.uncompressed and other.training == "uncompressed" and needed <= set(other.scores())
    ]
    same = [other for other in whole if other.model == row.model]
    related = [other for other in whole if other.family == row.family]
    if row.training == "same":  # beside a model that was trained here as well, as scripts/reproduce.sh names it
        related.sort(key=lambda other: not other.short_model.endswith(f"-{UNCOMPRESSED}"))
    return next(iter([*same, *related]), None)


def _row(model: str, compression: str, results: Sequence[Result]) -> MeasuredRow:
    by_benchmark: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_benchmark[result.benchmark].append(result)
    tokens = [result.average_tokens for result in results if result.average_tokens is not None]
    return MeasuredRow(
        model,
        compression,
        results[0].compression_config,
        {name: _cell(runs) for name, runs in by_benchmark.items()},
        {result.benchmark: result.title for result in results},
        mean(tokens) if tokens else None,
    )


def _cell(runs: Sequence[Result]) -> Cell:
    return Cell(
        tuple(run.headline for run in runs if run.headline is not None),
        sum(run.num_answered for run in runs),
        sum(run.num_questions for run in runs),
        tuple(dict.fromkeys(str(run.judge.get("model", "unnamed")) for run in runs if run.judge)),
    )


def _telling_part(model: str) -> str:
    """The last part of a path that names more than a phase of training."""
    parts = [part for part in re.split(r"[/\\]", model) if part not in ("", ".", "..")] or [model]
    return next((part for part in reversed(parts) if not _PLACES.fullmatch(part)), parts[-1])


def _named_preset(model: str) -> str | None:
    """The preset that a model's name ends with; None if it ends with none of them."""
    part = _telling_part(model)
    return next((name for name in sorted(presets(), key=len, reverse=True) if part.endswith(f"-{name}")), None)


def _plain(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """A configuration with every default written out; as it is if this version does not know it."""
    try:
        return CompressionConfig.from_dict(config).to_dict()
    except ValueError:
        return dict(config or {})


def _carried(folder: Path) -> dict[str, Any] | None:
    """The compression that a local checkpoint carries; None if the model is not here or says nothing."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        carried = json.loads(path.read_text(encoding="utf-8")).get("compression")
    except (json.JSONDecodeError, AttributeError):
        return None
    return carried if isinstance(carried, dict) else None
