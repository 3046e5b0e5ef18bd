"""Training time from the `train_summary.json` that each phase of a training leaves in its folder."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.common.json_files import need, read_object
from llava.common.outside_files import files_below
from llava.eval.tables.published import UNCOMPRESSED
from llava.eval.tables.rows import family, preset_of

SUMMARY_FILE = "train_summary.json"
PHASES = ("pretrain", "finetune")


@dataclass(frozen=True)
class TrainingRun:
    """One training, all its phases together.

    Attributes:
        folder: that holds the phases, or the phase itself if it stands alone.
        family: family of the model, by the folder's name.
        compression: preset that equals what was trained with; `own` if none does.
        tokens: visual tokens a decoder layer saw of one image, mean over layers, in the last phase.
        seconds: seconds of the phases, by name; of a phase that was resumed, those since then.
        resumed: whether a phase was.
        work: samples that each phase trained on, and devices, by name of the phase; None where the file does not say.
    """

    folder: Path
    family: str
    compression: str
    tokens: float
    seconds: Mapping[str, float]
    resumed: bool = False
    work: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of the phase that was trained into a folder; empty if there is none.

    Raises:
        ValueError: if the file holds no JSON object.
    """
    return read_if_there(folder / SUMMARY_FILE)


def read_if_there(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty without the file.

    Raises:
        ValueError: if the file holds anything else.
    """
    return read_object(path, "remove the file, or write it again") if path.is_file() else {}


def training_seconds(folder: Path) -> float:
    """Seconds that a phase took; 0 if it left no summary."""
    place = str(folder / SUMMARY_FILE)
    result = need(read_summary(folder), "result", dict, place, optional=True) or {}
    return float(need(result, "train_runtime", float, f"{place}: result", optional=True) or 0.0)


def was_resumed(summary: Mapping[str, Any], place: str) -> bool:
    """Whether a phase was resumed from a checkpoint: its seconds are those since then, as transformers counts them.

    Args:
        summary: what `read_summary` gave.
        place: its file, for messages.

    Raises:
        ValueError: if a number that tells it is none.
    """
    result = need(summary, "result", dict, place, optional=True) or {}
    names = ("step", "train_steps_per_second", "train_runtime")
    steps, rate, seconds = (need(result, name, float, f"{place}: result", optional=True) for name in names)
    # The rate counts the steps since the phase was resumed, and is rounded to three decimals.
    return bool(steps and rate and seconds) and (rate + 1e-3) * seconds < steps - 1


def find_training(folder: Path) -> list[TrainingRun]:
    """All trainings below a folder, in the order of their paths; those without a time are left out.

    Raises:
        ValueError: if a summary holds no JSON object.
        OSError: if a folder below cannot be read.
    """
    runs: dict[Path, list[Path]] = defaultdict(list)
    for path in (path for path in files_below(folder, SUMMARY_FILE) if path.name == SUMMARY_FILE):
        phase = path.parent
        runs[phase.parent if phase.name in PHASES else phase].append(phase)
    found = [_run(place, sorted(phases, key=_order)) for place, phases in runs.items()]
    return [run for run in found if run.total]


def time_saved(run: TrainingRun, runs: Iterable[TrainingRun]) -> tuple[float, TrainingRun] | None:
    """Share of training time that a run saves, in per cent, and the uncompressed run that it is compared with.

    Args:
        run: any.
        runs: those to choose from: the first without compression of the same family and the same phases, of as many
            samples, within 1 %, on as many devices.

    Returns:
        None if there is none to compare with, or the time of the run's first part is not known, for it was resumed.
    """
    whole = next(
        (
            other
            for other in runs
            if other.compression == UNCOMPRESSED
            and other.family == run.family
            and set(other.seconds) == set(run.seconds)
            and not other.resumed
            and _as_much_work(run, other)
        ),
        None,
    )
    return None if whole is None or run.resumed else (100 * (1 - run.total / whole.total), whole)


def _as_much_work(run: TrainingRun, other: TrainingRun) -> bool:
    """Whether each phase of two runs trained on as many samples and devices, as far as both say how many."""
    pairs = [
        (own, theirs)
        for name, work in run.work.items()
        for own, theirs in zip(work, other.work.get(name, (None, None)), strict=True)
    ]
    known = [(own, theirs) for own, theirs in pairs if own is not None and theirs is not None]
    return all(math.isclose(own, theirs, rel_tol=0.01) for own, theirs in known)


def trained_visual_tokens(summary: Mapping[str, Any], place: str) -> float | None:
    """Visual tokens of an image, mean over the decoder's layers: as planned, or as counted where images differ.

    Args:
        summary: what `read_summary` gave.
        place: its file, for messages.

    Returns:
        Where they were counted, of a sample with images, however many it has; None where the file does not say.

    Raises:
        ValueError: if one is no number.
    """
    planned = need(summary, "average_visual_tokens", float, place, optional=True)
    if planned:
        return float(planned)
    metrics = need(summary, "metrics", dict, place, optional=True) or {}
    counted = need(metrics, "average_visual_tokens", float, f"{place}: metrics", optional=True)
    return planned if counted is None else float(counted)


def _order(phase: Path) -> int:
    return PHASES.index(phase.name) if phase.name in PHASES else len(PHASES)


def _run(folder: Path, phases: list[Path]) -> TrainingRun:
    summaries = {phase.name if phase.name in PHASES else "training": read_summary(phase) for phase in phases}
    last = list(summaries.values())[-1]
    seconds = {name: training_seconds(phase) for name, phase in zip(summaries, phases, strict=True)}
    places = [str(phase / SUMMARY_FILE) for phase in phases]
    resumed = any(map(was_resumed, summaries.values(), places))
    work = dict(zip(summaries, map(_work, summaries.values(), places), strict=True))
    models = family(str(folder))
    compression = preset_of(need(last, "compression", dict, places[-1], optional=True), models) or "own"
    tokens = trained_visual_tokens(last, places[-1]) or 0.0
    return TrainingRun(folder, models, compression, tokens, seconds, resumed, work)


def _work(summary: Mapping[str, Any], place: str) -> tuple[float | None, float | None]:
    """Samples that a phase trained on, and devices."""
    counts, metrics = (need(summary, name, dict, place, optional=True) or {} for name in ("counts", "metrics"))
    samples = need(counts, "samples", float, f"{place}: counts", optional=True)
    return samples, need(metrics, "devices", float, f"{place}: metrics", optional=True)
