"""Measured rows: what one model under one compression, asked in one way, scored on each benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from llava.common.json_files import read_object
from llava.common.presets import presets
from llava.compression.config import CompressionConfig
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
class ScoreCell:
    """The scores of one row and benchmark, one of each seed.

    Attributes:
        scores: headline numbers; empty where only a server or a judge can tell.
        answered, questions: over all runs.
        counted: answers that the scores are about, over all runs.
        judge: who graded, as the results give it; None where nobody was asked.
        limits: settings that each benchmark has its own of.
        notes: sentences of the results.
    """

    scores: tuple[float, ...]
    answered: int
    questions: int
    counted: int
    judge: Mapping[str, Any] | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over runs; None without a score."""
        return mean(self.scores) if self.scores else None

    @property
    def complete(self) -> bool:
        """Whether every question has an answer that counts, in every run."""
        return self.counted == self.questions


@dataclass(frozen=True)
class MeasuredRow:
    """One model under one compression, asked in one way.

    Attributes:
        model: path or hub name.
        compression: name, as the results give it.
        config: what it is.
        cells: cells by name of the benchmark.
        titles: column of each benchmark.
        tokens: visual tokens a decoder layer saw, mean over the benchmarks; None where no question had an image.
        presets: that do what the compression does, whatever its name is.
        settings: that decide answers, but for those that each benchmark has its own of.
        variant: what tells the row from others of the same model and name, in words; empty without such others.
    """

    model: str
    compression: str
    config: Mapping[str, Any]
    cells: Mapping[str, ScoreCell]
    titles: Mapping[str, str]
    tokens: float | None
    presets: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""

    @property
    def label(self) -> str:
        """Name of the compression, with what tells the row from others of that name."""
        return f"{self.compression} ({self.variant})" if self.variant else self.compression

    @property
    def uncompressed(self) -> bool:
        """Whether nothing was compressed."""
        return not any(self.config.values())

    @property
    def family(self) -> str:
        """Family of the model, see `family`."""
        return family(self.model)

    @property
    def short_model(self) -> str:
        """Last telling part of the model's path."""
        return _telling_part(self.model)

    def scores(self) -> dict[str, float]:
        """Mean score of every benchmark that has one."""
        return {name: cell.mean for name, cell in self.cells.items() if cell.mean is not None}

    @cached_property
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
        return "same" if plain(carried) == plain(self.config) else "other"


def family(model: str) -> str:
    """What models are compared within: size and version of a known one, else the name without preset and folders.

    >>> family("./checkpoints/reproduce/llava-v1.5-7b-duet-192/finetune")
    'llava-1.5-7b'
    """
    for part in reversed(re.split(r"[/\\]", model.lower().replace("_", "-"))):  # a folder around it may be of another
        for name, pattern in _FAMILIES.items():
            if re.search(pattern, part):
                return name
    return _telling_part(model).removesuffix(f"-{_named_preset(model)}")


def preset_of(config: Mapping[str, Any] | None, models: str = "") -> str | None:
    """The first preset that equals a configuration; None if none does.

    Args:
        config: any; defaults may be left out.
        models: family of the model, as `family` names it. Presets made for it go first, for `next-640` has the numbers
            of `duet-128`.
    """
    equal = presets_of(config, preset_configs())
    made_for = {name: CompressionConfig.from_preset(name).made_for for name in equal}
    own = [name for name, made in made_for.items() if made and any(models.startswith(one) for one in made.families)]
    return next(iter([*own, *equal]), None)


def preset_configs() -> dict[str, dict[str, Any]]:
    """What every preset does, by name."""
    return {name: CompressionConfig.from_preset(name).to_dict() for name in presets()}


def presets_of(config: Mapping[str, Any] | None, known: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of all presets that equal a configuration.

    Args:
        config: any; defaults may be left out.
        known: result of `preset_configs`.
    """
    full = plain(config)
    return tuple(name for name, preset in known.items() if preset == full)


def find_baseline(row: MeasuredRow, rows: Sequence[MeasuredRow], benchmarks: Iterable[str]) -> MeasuredRow | None:
    """The uncompressed row that a row is compared with: of the same model, else of the same family.

    Args:
        row: any.
        rows: all that were measured.
        benchmarks: that the baseline must have a score of.
    """
    needed = list(benchmarks)
    whole = [
        other
        for other in rows
        if other.uncompressed
        and other.training == "uncompressed"
        and other.family == row.family
        and set(needed) <= set(other.scores())
    ]

    def distance(other: MeasuredRow) -> tuple[bool, ...]:
        # Beside a model that was trained here comes one that was as well, by the name that scripts/reproduce.sh gives.
        trained_here = row.training != "same" or other.short_model.endswith(f"-{UNCOMPRESSED}")
        partly = not all(other.cells[name].complete for name in needed)
        return other.model != row.model, not trained_here, bool(differences(row, other, needed)), partly

    return min(whole, key=distance, default=None)


def differences(row: MeasuredRow, other: MeasuredRow, benchmarks: Iterable[str]) -> list[str]:
    """Names of what two rows were measured differently in: `settings`, `judges`, both or nothing.

    Args:
        row, other: any; both have all of the benchmarks.
        benchmarks: names of the benchmarks to look at.
    """
    pairs = [(row.cells[name], other.cells[name]) for name in benchmarks]
    settings = row.settings != other.settings or any(one.limits != two.limits for one, two in pairs)
    judges = any(one.judge != two.judge for one, two in pairs)
    return ["settings"] * settings + ["judges"] * judges


def _telling_part(model: str) -> str:
    """The last part of a path that names more than a phase of training."""
    parts = [part for part in re.split(r"[/\\]", model) if part not in ("", ".", "..")] or [model]
    return next((part for part in reversed(parts) if not _PLACES.fullmatch(part)), parts[-1])


def _named_preset(model: str) -> str | None:
    """The preset that a model's name ends with; None if it ends with none of them."""
    part = _telling_part(model)
    return next((name for name in sorted(presets(), key=len, reverse=True) if part.endswith(f"-{name}")), None)


def plain(config: Mapping[str, Any] | None) -> dict[str, Any]:
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
        carried = read_object(path, "fetch it anew").get("compression")
    except ValueError:
        return None
    return carried if isinstance(carried, dict) else None
