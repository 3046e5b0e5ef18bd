"""Published tables as data, from the YAML files under `configs/paper`: the only place that reads them.

Files named `table-<number>` are the paper's own; the others are of the methods that it is compared with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from llava.common.presets import data_folder
from llava.common.yaml_files import parse_yaml

AVERAGE = "Avg"
UNCOMPRESSED = "none"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table.

    Attributes:
        budget: visual tokens a decoder layer sees, as the paper names it.
        method: name of the method in the paper.
        preset: file of configs/compression that describes the row; None where none does.
        scores: scores by column; a cell that the paper leaves empty is missing.
        others: columns that are no benchmark, e.g. a speedup.
        average: mean share of the baseline, in per cent, as printed.
    """

    budget: str
    method: str
    preset: str | None
    scores: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)
    average: float | None = None


@dataclass(frozen=True)
class PublishedTable:
    """One published table.

    Attributes:
        name: name of the file, e.g. `table-3` or `visionzip-1`.
        title: title in words.
        model: family that was measured, as `rows.family` names it.
        trained: whether models were trained under the budget that they are used with.
        benchmarks: name of the benchmark by column, in the order of the columns; None for one that is not here.
        others: what of a training run a column shows that is no benchmark, or None, by column.
        baseline: the model without compression.
        rows: all others, in order.
        source: where it was printed.
        caveats: sentences that a reader of the numbers has to know.
    """

    name: str
    title: str
    model: str
    trained: bool
    benchmarks: Mapping[str, str | None]
    others: Mapping[str, str | None]
    baseline: PublishedRow
    rows: tuple[PublishedRow, ...]
    source: str
    caveats: tuple[str, ...]

    def row(self, preset: str) -> PublishedRow | None:
        """The first row that a preset describes, the baseline among them; None if there is none."""
        return next((row for row in (self.baseline, *self.rows) if row.preset == preset), None)


def table_names() -> list[str]:
    """Names of the tables: the paper's in its order, then those of other papers."""
    names = [entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml")]
    return sorted(names, key=_order)


def read_table(name: str) -> PublishedTable:
    """One published table.

    Args:
        name: one of `table_names`; of the paper's own tables the number will do.

    Raises:
        ValueError: if there is no such table, or its file does not hold one.
    """
    full = name if name in table_names() else f"table-{name}"
    if full not in table_names():
        raise ValueError(f"There is no published table {name!r}; there are {', '.join(table_names())}.")
    text = _folder().joinpath(f"{full}.yaml").read_text(encoding="utf-8")
    return _table(full, parse_yaml(text, f"{full}.yaml"))


def relative_average(scores: Mapping[str, float], baseline: Mapping[str, float]) -> float | None:
    """Mean share of the baseline's scores, in per cent: the paper's last column.

    Args:
        scores: scores by benchmark.
        baseline: scores of the model without compression, by benchmark.

    Returns:
        None unless both hold the same benchmarks, at least one, and no score of the baseline is 0.
    """
    if not baseline or set(scores) != set(baseline) or not all(baseline.values()):
        return None
    return mean(100 * float(scores[name]) / float(whole) for name, whole in baseline.items())


def _order(name: str) -> tuple[bool, int, str]:
    number = re.match(r"table-(\d+)", name)
    return number is None, int(number[1]) if number else 0, name


def _folder() -> Any:
    return data_folder("llava.eval.paper", "table-1.yaml", "paper")


def _table(name: str, data: Mapping[str, Any]) -> PublishedTable:
    benchmarks, others = data["benchmarks"], data.get("others", {})
    rows = [_row(row, list(benchmarks), list(others), name) for row in (data["baseline"], *data["rows"])]
    return PublishedTable(
        name,
        data["title"],
        data["model"],
        data["trained"],
        benchmarks,
        others,
        rows[0],
        tuple(rows[1:]),
        data["source"],
        tuple(data["caveats"]),
    )


def _row(row: Mapping[str, Any], benchmarks: Sequence[str], others: Sequence[str], name: str) -> PublishedRow:
    place = f"{name}, row {row['method']} at {row['budget']}"
    return PublishedRow(
        budget=str(row["budget"]),
        method=str(row["method"]),
        preset=row.get("preset"),
        scores=_by_column(benchmarks, row.get("values"), place),
        others=_by_column(others, row.get("others"), place),
        average=row.get("avg"),
    )


def _by_column(columns: Sequence[str], values: Sequence[float | None] | None, place: str) -> dict[str, float]:
    """Values by column, empty cells left out.

    Raises:
        ValueError: unless there is one value, or null, a column.
    """
    if values is None:
        return {}
    if len(values) != len(columns):
        raise ValueError(f"{place} has {len(values)} values for {len(columns)} columns; give one, or null, a column.")
    return {column: value for column, value in zip(columns, values, strict=True) if value is not None}
