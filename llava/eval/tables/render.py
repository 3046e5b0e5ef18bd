"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial

from llava.eval.tables.assemble import Line, Table
from llava.eval.tables.markup import INCOMPLETE, SEVERAL, csv_value, latex_text, markdown_text
from llava.eval.tables.published import AVERAGE
from llava.eval.tables.rows import ScoreCell

MISSING = "-"
_PLACE_FIELDS = ("table", "budget", "method", "model", "tokens", "column")
_VALUE_FIELDS = ("paper", "measured", "runs", "low", "high", "counted", "answered", "questions", "notes")


def written(value: float | None) -> str:
    """A score with at most one decimal; a dash where there is none."""
    if value is None:
        return MISSING
    return f"{value:.1f}".removesuffix(".0") if value >= 1000 else f"{value:.1f}"


def markdown(table: Table) -> str:
    """A heading, the table and its notes."""
    head, body = grid(table)
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *body]
    lines = ["| " + " | ".join(markdown_text(cell) for cell in row) + " |" for row in rows]
    return (
        "\n".join(
            [f"## {markdown_text(table.title)}", "", *lines, "", *(f"- {markdown_text(note)}" for note in table.notes)]
        ).rstrip()
        + "\n"
    )


def latex(table: Table) -> str:
    """A `table` environment that needs the package booktabs; notes stand below the rules."""
    head, body = grid(table)
    rows = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in body]
    notes = [rf"  \par\footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex_text(table.title)}}}",
            rf"  \begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            r"    \toprule",
            "    " + " & ".join(latex_text(cell) for cell in head) + r" \\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def comma_separated(tables: Sequence[Table]) -> str:
    """One line for each cell, with everything that the marks of the other formats stand for."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([*_PLACE_FIELDS, *_VALUE_FIELDS])
    for table in tables:
        for line in table.lines:
            tokens = "" if line.tokens is None else f"{line.tokens:.2f}"
            place = [table.name, line.budget, line.method, line.model, tokens]
            for column in _columns(table):
                writer.writerow(map(csv_value, [*place, column, *_csv_values(table, column, line)]))
    return target.getvalue()


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; what the paper lacks, or nobody measured, has no column."""
    columns: list[tuple[str, Callable[[Line], str]]] = [
        ("Budget", lambda line: line.budget or MISSING),
        ("Method", lambda line: line.method),
    ]
    from_paper = any(line.paper for line in table.lines)
    from_runs = any(line.measured for line in table.lines)
    for column in _columns(table):
        if from_paper:
            columns.append((f"{column}, paper" if from_runs else column, partial(_paper, column)))
        if from_runs:
            columns.append((f"{column}, measured" if from_paper else column, partial(_measured, table, column)))
    if from_runs:
        columns.append(("Tokens", lambda line: MISSING if line.tokens is None else f"{line.tokens:.2f}"))
        columns.append(("Model", _model))
    return [heading for heading, _ in columns], [[read(line) for _, read in columns] for line in table.lines]


def _columns(table: Table) -> list[str]:
    return [*table.others, *table.columns, *([AVERAGE] if table.average else [])]


def _paper(column: str, line: Line) -> str:
    return written(line.paper.get(column))


def _model(line: Line) -> str:
    """The model, marked where some of its answers are missing or do not count."""
    return line.model + ("" if line.complete else INCOMPLETE) if line.measured else MISSING


def _measured(table: Table, column: str, line: Line) -> str:
    if column in table.others:
        return written(line.others.get(column))
    if column == AVERAGE:
        return MISSING if line.average is None else written(line.average) + _marks(list(line.cells.values()))
    cell = line.cells.get(column)
    return MISSING if cell is None or cell.mean is None else written(cell.mean) + _marks([cell])


def _marks(cells: Sequence[ScoreCell]) -> str:
    incomplete = any(not cell.complete for cell in cells)
    return (INCOMPLETE if incomplete else "") + (SEVERAL if any(len(cell.scores) > 1 for cell in cells) else "")


def _csv_values(table: Table, column: str, line: Line) -> list[object]:
    """What a line of the CSV file holds behind the name of the column; empty for what there is none of."""
    paper, nothing = line.paper.get(column, ""), [""] * (len(_VALUE_FIELDS) - 2)
    if column in table.others:
        return [paper, line.others.get(column, ""), *nothing]
    cells = list(line.cells.values()) if column == AVERAGE else [line.cells[column]] if column in line.cells else []
    if not cells:
        return [paper, "", *nothing]
    counts = [sum(getattr(cell, name) for cell in cells) for name in ("counted", "answered", "questions")]
    if column == AVERAGE:
        return [paper, "" if line.average is None else line.average, "", "", "", *counts, ""]
    (cell,) = cells
    spread = [min(cell.scores), max(cell.scores)] if cell.scores else ["", ""]
    mean = "" if cell.mean is None else cell.mean
    return [paper, mean, len(cell.scores), *spread, *counts, " ".join(cell.notes)]
