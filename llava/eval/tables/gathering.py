"""Result files gathered into rows: only runs that differ in nothing but their seed are averaged."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from llava.eval.scoring.benchmark_result import Result
from llava.eval.tables.rows import MeasuredRow, ScoreCell, plain, preset_configs, presets_of

NO_DIFFERENCE = ("batch_size", "num_gpus", "limit", "loader_workers")
"""Settings that make no difference to answers."""
OF_BENCHMARK = ("max_new_tokens", "num_frames")
"""Settings that each benchmark has its own of: rows may hold different ones, cells may not."""


@dataclass(frozen=True)
class _Part:
    """Runs of one row and benchmark that may be averaged.

    Attributes:
        runs: results of different seeds; at least one.
        left_out: sentences on runs that do not count.
        variant: what tells them from other runs of the row and benchmark.
    """

    runs: tuple[Result, ...]
    left_out: tuple[str, ...]
    variant: Mapping[str, str]

    @property
    def benchmark(self) -> str:
        """Name of the benchmark of all runs."""
        return self.runs[0].benchmark

    @property
    def judge(self) -> Mapping[str, Any] | None:
        """The judge of all runs, as their results describe it."""
        return self.runs[0].judge


def measured_rows(results: Iterable[Result]) -> list[MeasuredRow]:
    """Results gathered into rows, in the order in which they first appear.

    A row has one model, one configuration and one way of being asked. Where a benchmark was graded by several judges,
    or answered at several lengths, there is a row for each.
    """
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[_key([result.model, plain(result.compression_config), _settings(result)])].append(result)
    known = preset_configs()
    rows = [row for group in groups.values() for row in _rows(group, presets_of(group[0].compression_config, known))]
    return _distinguished(rows, set(known))


def judge_name(judge: Mapping[str, Any]) -> str:
    """What to call a judge: the model that was asked and, where the server says so, what answered."""
    asked, answered = str(judge.get("model", "unnamed")), judge.get("answered_as") or []
    others = [name for name in answered if name != asked]
    return f"{asked} ({', '.join(others)})" if others else asked


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _settings(result: Result) -> dict[str, Any]:
    """Settings that decide answers and that a whole row shares."""
    left_out = (*NO_DIFFERENCE, *OF_BENCHMARK)
    return {name: value for name, value in result.settings.items() if name not in left_out}


def _limits(result: Result) -> dict[str, Any]:
    return {name: result.settings[name] for name in OF_BENCHMARK if name in result.settings}


def _rows(group: Sequence[Result], presets: tuple[str, ...]) -> Iterator[MeasuredRow]:
    """The rows of one model, configuration, which some presets equal, and way of being asked."""
    names = [result.compression for result in group]
    filled: list[list[_Part]] = []
    for part in _parts(group):
        place = next((parts for parts in filled if _has_room(parts, part)), None)
        if place is None:
            filled.append([part])
        else:
            place.append(part)
    for parts in filled:
        first = parts[0].runs[0]
        runs = [run for part in parts for run in part.runs]
        tokens = [run.average_tokens for run in runs if run.average_tokens is not None]
        yield MeasuredRow(
            first.model,
            next((name for name in names if name in presets), (*presets, *names)[0]),
            first.compression_config,
            {part.benchmark: _cell(part) for part in parts},
            {run.benchmark: run.title for run in runs},
            mean(tokens) if tokens else None,
            presets,
            _settings(first),
            _variants(parts),
        )


def _parts(group: Sequence[Result]) -> Iterator[_Part]:
    by_benchmark: dict[str, list[Result]] = defaultdict(list)
    for result in group:
        by_benchmark[result.benchmark].append(result)
    for results in by_benchmark.values():
        scored = [result for result in results if result.headline is not None] or results
        alike: dict[str, list[Result]] = defaultdict(list)
        for result in scored:
            alike[_key([_limits(result), result.judge])].append(result)
        for runs in alike.values():
            yield _Part(*_counting(runs), _variant(runs[0], scored))


def _counting(runs: Sequence[Result]) -> tuple[tuple[Result, ...], tuple[str, ...]]:
    """Runs that count: complete ones if there is one, of each seed the newest; and sentences on the others."""
    whole = [run for run in runs if run.complete] or list(runs)
    newest: dict[int, Result] = {}
    for run in whole:
        if run.seed not in newest or run.date >= newest[run.seed].date:
            newest[run.seed] = run
    left_out = []
    if len(whole) < len(runs):
        left_out.append(f"Incomplete runs, left out: {len(runs) - len(whole)}.")
    if len(newest) < len(whole):
        left_out.append(f"Older runs with the same seed, left out: {len(whole) - len(newest)}.")
    return tuple(newest.values()), tuple(left_out)


def _variants(parts: Sequence[_Part]) -> str:
    """The judges in words; where benchmarks differ, each is named."""
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        for name, text in part.variant.items():
            values[name][text].append(part.benchmark)
    words = []
    for name, texts in values.items():
        words += [
            f"{name} {text}" + (f" for {' and '.join(of)}" if len(texts) > 1 else "") for text, of in texts.items()
        ]
    return ", ".join(words)


def _variant(run: Result, others: Sequence[Result]) -> dict[str, str]:
    """Names of what a run differs in from others of the same benchmark."""
    limits = _limits(run)
    facts = {name: str(value) for name, value in limits.items() if any(_limits(o).get(name) != value for o in others)}
    other_judges = [other.judge or {} for other in others if other.judge != run.judge]
    if other_judges:
        judge = run.judge or {}
        facts["judge"] = judge_name(judge) if judge else "none"
        if any(judge_name(other) == facts["judge"] for other in other_judges):
            facts |= {
                f"judge's {name}": str(value)
                for name, value in judge.items()
                if any(other.get(name) != value for other in other_judges)
            }
    return facts


def _has_room(parts: Sequence[_Part], part: _Part) -> bool:
    """Whether a row lacks a part's benchmark and has no other judge."""
    judges = [other.judge for other in parts if other.judge is not None]
    same = part.judge is None or all(_asked(judge) == _asked(part.judge) for judge in judges)
    return same and all(other.benchmark != part.benchmark for other in parts)


def _asked(judge: Mapping[str, Any]) -> tuple[Any, Any]:
    """Model and address: a prompt and what the server says are a benchmark's own."""
    return judge.get("model"), judge.get("endpoint")


def _cell(part: _Part) -> ScoreCell:
    runs = part.runs
    # Tables say themselves how many questions were answered.
    repeated = "{0.num_answered} of {0.num_questions} questions were answered"
    notes = dict.fromkeys(note for run in runs for note in run.notes if not note.startswith(repeated.format(run)))
    return ScoreCell(
        scores=tuple(run.headline for run in runs if run.headline is not None),
        answered=sum(run.num_answered for run in runs),
        questions=sum(run.num_questions for run in runs),
        counted=sum(run.num_answered if run.num_counted is None else run.num_counted for run in runs),
        judge=part.judge,
        limits=_limits(runs[0]),
        notes=(*notes, *part.left_out),
    )


def _distinguished(rows: Sequence[MeasuredRow], presets: set[str]) -> list[MeasuredRow]:
    """Rows with words for what tells them from others of the same model and name, and from the preset of that name."""
    facts = [_facts(row) for row in rows]
    distinguished = []
    for row, own in zip(rows, facts, strict=True):
        same = [
            other
            for one, other in zip(rows, facts, strict=True)
            if (one.model, one.compression) == (row.model, row.compression)
        ]
        differing = [f"{name} {text}" for name, text in own.items() if any(other.get(name) != text for other in same)]
        named = ["not the preset"] if row.compression in presets and row.compression not in row.presets else []
        distinguished.append(
            replace(row, variant=", ".join([*named, *differing, *([row.variant] if row.variant else [])]))
        )
    return distinguished


def _facts(row: MeasuredRow) -> dict[str, str]:
    """Settings and every value of the configuration, as text, by name."""
    stages = {name: stage for name, stage in plain(row.config).items() if isinstance(stage, Mapping)}
    config = {f"{stage}.{name}": str(value) for stage, values in stages.items() for name, value in values.items()}
    return {**config, **{name: str(value) for name, value in row.settings.items()}}
