"""Tables of lines: what the paper printed and what was measured, matched by model family, preset and training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llava.eval.tables.gathering import judge_name
from llava.eval.tables.published import AVERAGE, PublishedRow, PublishedTable, relative_average
from llava.eval.tables.rows import MeasuredRow, ScoreCell, differences, find_baseline
from llava.eval.tables.training import TrainingRun, time_saved

TRAINING_TIME_SAVED = "training_time_saved"


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        budget: visual tokens a decoder layer sees, as the paper names it; empty for what it does not have.
        method: name of the method in the paper, or of the compression.
        paper: the paper's scores, other columns and average, by column.
        cells: what was measured, by column.
        others: what was measured and is no benchmark, by column.
        average: measured mean share of the baseline, in per cent; None unless every column was measured.
        tokens: visual tokens that were counted.
        model: that was measured; empty if none was.
        place: what was measured, as notes name it.
    """

    budget: str
    method: str
    paper: Mapping[str, float] = field(default_factory=dict)
    cells: Mapping[str, ScoreCell] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)
    average: float | None = None
    tokens: float | None = None
    model: str = ""
    place: str = ""

    @property
    def measured(self) -> bool:
        """Whether anything was measured."""
        return bool(self.model)

    @property
    def complete(self) -> bool:
        """Whether everything that was measured is."""
        return all(cell.complete for cell in self.cells.values())


@dataclass(frozen=True)
class Table:
    """A table to be written.

    Attributes:
        name: name for files.
        title: title in words.
        columns: benchmarks, in order.
        others: columns that are no benchmark.
        average: whether it has an average.
        lines: lines in order.
        notes: sentences below it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    others: tuple[str, ...]
    average: bool
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Frame:
    """What the lines of one table share.

    Attributes:
        benchmarks: names of benchmarks by column.
        baseline: the paper's scores without compression, by column; empty where it has none.
        rows: among which a measured baseline is looked for.
        notes: added to as lines are made.
    """

    benchmarks: Mapping[str, str | None]
    baseline: Mapping[str, float]
    rows: Sequence[MeasuredRow]
    notes: list[str]


def paper_table(published: PublishedTable, rows: Sequence[MeasuredRow], training: Sequence[TrainingRun]) -> Table:
    """A table of the paper with what was measured beside it, and below it what the paper does not have.

    Args:
        published: the paper's table.
        rows: all that were measured; those of another model family, or trained otherwise, are left out.
        training: all training runs.
    """
    fitting = fitting_rows(published, rows)
    frame = _Frame(published.benchmarks, published.baseline.scores, rows, list(published.caveats))
    known = (published.baseline, *published.rows)
    lines: list[Line] = []
    for row in known:
        beside = [_measured(frame, row, one) for one in fitting if row.preset in one.presets]
        beside += [_trained(published, row, run, training, frame.notes) for run in _runs(published, row, training)]
        lines += beside or [Line(row.budget, row.method, _paper(row))]
    for one in fitting:
        if not any(row.preset in one.presets for row in known):
            lines.append(_measured(frame, PublishedRow("", f"{one.compression} (measured only)", None), one))
    notes = (f"Source: {published.source}.", *_unique([*frame.notes, *_result_notes(lines)]))
    columns = tuple(published.benchmarks)
    return Table(published.name, published.title, columns, tuple(published.others), bool(columns), tuple(lines), notes)


def fitting_rows(published: PublishedTable, rows: Sequence[MeasuredRow]) -> list[MeasuredRow]:
    """Rows that belong into a table: its family, one of its benchmarks, trained as its models were."""
    return [row for row in rows if row.family == published.model and _belongs(published, row)]


def own_table(family: str, rows: Sequence[MeasuredRow], everything: Sequence[MeasuredRow]) -> Table:
    """A table of what was measured with one family of models, without the paper.

    Args:
        family: its name.
        rows: rows to be shown.
        everything: all rows, to find baselines in.
    """
    benchmarks: dict[str, str | None] = {title: name for row in rows for name, title in row.titles.items()}
    frame = _Frame(benchmarks, {}, everything, [])
    lines = tuple(_measured(frame, PublishedRow("", row.compression, None), row) for row in rows)
    notes = tuple(_unique([*frame.notes, *_result_notes(lines)]))
    return Table(family, f"{family}, measured", tuple(benchmarks), (), True, lines, notes)


def _belongs(published: PublishedTable, row: MeasuredRow) -> bool:
    if not set(published.benchmarks.values()) & set(row.cells):
        return False
    return row.training == ("same" if published.trained and not row.uncompressed else "uncompressed")


def _measured(frame: _Frame, row: PublishedRow, measured: MeasuredRow) -> Line:
    """A line of the paper with a measured row beside it; adds the notes that the numbers need."""
    here = {column: name for column, name in frame.benchmarks.items() if name is not None and name in measured.cells}
    cells = {column: measured.cells[name] for column, name in here.items()}
    average, note = _average(frame, measured)
    place = f"{measured.short_model}, {measured.label}"
    frame.notes.append(note)
    for column, cell in cells.items():
        frame.notes.extend(_cell_notes(column, place, cell))
    method = f"{row.method}, {measured.variant}" if measured.variant else row.method
    return Line(row.budget, method, _paper(row), cells, {}, average, measured.tokens, measured.short_model, place)


def _average(frame: _Frame, row: MeasuredRow) -> tuple[float | None, str]:
    """The measured average, and a sentence that says what it is relative to, or why there is none."""
    own = row.scores()
    names = {column: name for column, name in frame.benchmarks.items() if name is not None and name in own}
    missing = [column for column in frame.benchmarks if column not in names]
    if missing:
        return None, f"{row.short_model}, {row.label}: no average without {', '.join(missing)}."
    scores = {column: own[name] for column, name in names.items()}
    baseline = find_baseline(row, frame.rows, names.values())
    if baseline is not None:
        whole = {column: baseline.scores()[name] for column, name in names.items()}
        return relative_average(scores, whole), _relative_to(row, baseline, list(names.values()))
    average = relative_average(scores, frame.baseline)
    if average is None:
        return None, f"{row.short_model}, {row.label}: no average, as no model was measured uncompressed."
    return average, f"The average of {row.short_model} is relative to the paper's baseline; none was measured here."


def _relative_to(row: MeasuredRow, baseline: MeasuredRow, benchmarks: Sequence[str]) -> str:
    """A sentence on the baseline, and on what keeps it from being a fair one."""
    partly = not all(baseline.cells[name].complete for name in benchmarks)
    others = [f"with other {what}" for what in differences(row, baseline, benchmarks)]
    but = ", ".join(["", *others, *(["with some questions not answered"] if partly else [])])
    who = f"{row.short_model}, {row.label}," if others or row.variant else row.short_model
    return f"The average of {who} is relative to {baseline.short_model}, measured uncompressed{but}."


def _cell_notes(column: str, place: str, cell: ScoreCell) -> list[str]:
    notes = []
    if not cell.complete:
        graded = "" if cell.counted == cell.answered else f"; the score is about {cell.counted} of them"
        notes.append(f"† {column}, {place}: {cell.answered} of {cell.questions} questions were answered{graded}.")
    if len(cell.scores) > 1:
        low, high = min(cell.scores), max(cell.scores)
        notes.append(f"‡ {column}, {place}: mean of {len(cell.scores)} runs, from {low:.1f} to {high:.1f}.")
    if cell.judge is not None:
        notes.append(f"{column}, {place}: judged by {judge_name(cell.judge)}.")
    return notes


def _result_notes(lines: Sequence[Line]) -> list[str]:
    """What the results say of their numbers; what all of a column say stands once."""
    measured = Counter(column for line in lines for column in line.cells)
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in lines:
        for column, cell in line.cells.items():
            for note in cell.notes:
                places[column, " ".join(note.split())].append(line.place)
    return [
        f"{column}: {note}" if len(said) == measured[column] else f"{column}, {'; '.join(said)}: {note}"
        for (column, note), said in places.items()
    ]


def _runs(published: PublishedTable, row: PublishedRow, training: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Training runs that stand beside a row of the table of training times."""
    if TRAINING_TIME_SAVED not in published.others.values():
        return []
    return [run for run in training if run.family == published.model and run.compression == row.preset]


def _trained(
    published: PublishedTable, row: PublishedRow, run: TrainingRun, training: Sequence[TrainingRun], notes: list[str]
) -> Line:
    saved = time_saved(run, training)
    phases = " and ".join(run.seconds)
    hours = f"{run.folder}: {run.total / 3600:.2f} h of {phases}"
    if saved:
        notes.append(f"{hours}, as against {saved[1].folder}.")
    elif run.resumed:
        notes.append(f"{hours} since it was resumed; what came before is not recorded, so none is said to be saved.")
    else:
        notes.append(f"{hours}; no uncompressed run to compare with, of as many samples on as many devices.")
    columns = [column for column, shows in published.others.items() if shows == TRAINING_TIME_SAVED]
    others = dict.fromkeys(columns, saved[0]) if saved else {}
    return Line(row.budget, row.method, _paper(row), {}, others, None, run.tokens, str(run.folder))


def _paper(row: PublishedRow) -> dict[str, float]:
    average = {} if row.average is None else {AVERAGE: row.average}
    return {**row.scores, **row.others, **average}


def _unique(notes: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(notes))
