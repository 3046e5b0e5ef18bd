"""Tables and drawings from result files, beside the numbers that the paper printed.

    python -m llava.eval.table results/ --paper
    python -m llava.eval.table results/ checkpoints/reproduce --paper --format latex --out report --plots

Folders are searched for the result files of `llava.eval.run` and for the `train_summary.json` of trainings. With
`--paper`, every published table that something was measured for is written, those of other methods' papers among them;
a result stands beside the row whose preset it was measured under, and results that there is no row for stand below. The
average is the paper's: mean share, over the benchmarks, of the score without compression.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from llava.common.atomic_write import write_whole
from llava.common.path_flags import FOLDER_TO_READ, FOLDER_TO_WRITE
from llava.common.program import as_program
from llava.common.shown import say
from llava.eval.runner.exit_status import exit_status, tell
from llava.eval.scoring.benchmark_result import find_results
from llava.eval.tables.assemble import TRAINING_TIME_SAVED, Table, fitting_rows, own_table, paper_table
from llava.eval.tables.gathering import measured_rows
from llava.eval.tables.plots import FORMATS, accuracy_over_budget
from llava.eval.tables.published import PublishedTable, read_table, table_names
from llava.eval.tables.render import comma_separated, latex, markdown
from llava.eval.tables.rows import MeasuredRow
from llava.eval.tables.training import TrainingRun, find_training

ENDINGS = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _run(options), kept="")


def _run(options: argparse.Namespace) -> int:
    if options.plots and options.out is None:
        raise ValueError("--plots needs --out, the folder that drawings are written to.")
    rows, training = _found(options.folders)
    tables = _tables(options, rows, training)
    if options.out is None:
        say(_text(tables, options.format), end="")
    else:
        _write(tables, options.format, options.out)
    if options.plots:
        _draw(rows, training, options.out, options.plot_format)
    return 0


def _found(folders: Sequence[Path]) -> tuple[list[MeasuredRow], list[TrainingRun]]:
    """What was measured and trained below the folders; what two of them share counts once."""
    results = {path.resolve(): result for folder in folders for path, result in find_results(folder)}
    training = {run.folder.resolve(): run for folder in folders for run in find_training(folder)}
    return measured_rows(results.values()), list(training.values())


def _tables(options: argparse.Namespace, rows: Sequence[MeasuredRow], training: Sequence[TrainingRun]) -> list[Table]:
    """The tables that were asked for.

    Raises:
        ValueError: if there are none.
    """
    names = [name.strip() for name in options.tables.split(",")] if options.tables else table_names()
    published = [read_table(name) for name in names] if options.paper or options.tables else []
    chosen = [table for table in published if options.tables or _measured(table, rows, training)]
    shown = {id(row) for table in chosen for row in fitting_rows(table, rows)}
    left: dict[str, list[MeasuredRow]] = defaultdict(list)
    for row in rows:
        if id(row) not in shown:
            left[row.family].append(row)
    tables = [paper_table(table, rows, training) for table in chosen]
    tables += [own_table(family, some, rows) for family, some in left.items()]
    if not tables:
        places = ", ".join(map(str, options.folders))
        raise ValueError(f"There is no result file in {places}; give the --output of llava.eval.run.")
    return tables


def _measured(table: PublishedTable, rows: Sequence[MeasuredRow], training: Sequence[TrainingRun]) -> bool:
    """Whether a table has something measured to show; a model without compression alone opens only one of inference."""
    if TRAINING_TIME_SAVED in table.others.values() and any(run.family == table.model for run in training):
        return True
    compressed = [row for row in rows if row.family == table.model and not row.uncompressed]
    fitting = fitting_rows(table, rows)
    return any(row in compressed for row in fitting) or (bool(fitting) and not compressed and not table.trained)


def _text(tables: Sequence[Table], form: str) -> str:
    if form == "csv":
        return comma_separated(tables)
    return "\n".join(map({"markdown": markdown, "latex": latex}[form], tables))


def _write(tables: Sequence[Table], form: str, folder: Path) -> None:
    """One file for each table, each in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[Path] = set()
    for table in tables:
        path = _free_path(folder, table.name, ENDINGS[form], taken)
        write_whole(path, _text([table], form))
        say(f"wrote {path}")


def _draw(rows: Sequence[MeasuredRow], training: Sequence[TrainingRun], folder: Path, ending: str) -> None:
    """Accuracy over budget for each family and benchmark, training time over budget for each family."""
    taken: set[Path] = set()
    for family in dict.fromkeys(row.family for row in rows):
        some = [row for row in rows if row.family == family]
        for name, title in {name: title for row in some for name, title in row.titles.items()}.items():
            series, baseline = _accuracies(some, name)
            if series:
                path = _free_path(folder, f"{family}-{name}", ending, taken)
                say(f"wrote {accuracy_over_budget(series, path, title=family, ylabel=title, baseline=baseline)}")
    for run in training:
        if run.resumed:
            tell(f"{run.folder} was resumed, and the time before that is not recorded; its hours are not drawn.")
    whole = [run for run in training if not run.resumed]
    for family in dict.fromkeys(run.family for run in whole):
        times: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
        for run in whole:
            if run.family == family:
                hours = run.total / 3600
                times[_method(run.compression)].append((run.tokens, hours, hours, hours))
        path = _free_path(folder, f"{family}-training-time", ending, taken)
        say(f"wrote {accuracy_over_budget(times, path, title=family, ylabel='training time (h)')}")


def _accuracies(
    rows: Sequence[MeasuredRow], benchmark: str
) -> tuple[dict[str, list[tuple[float, float, float, float]]], float | None]:
    """Points of each method, and the score of the first model that was trained, and measured, uncompressed."""
    several = len({row.model for row in rows if not row.uncompressed and row.training != "same"}) > 1
    series: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    baseline = None
    for row in rows:
        cell = row.cells.get(benchmark)
        if cell is None or cell.mean is None:
            continue
        if baseline is None and row.uncompressed and row.training == "uncompressed":
            baseline = cell.mean
        elif row.tokens is not None:
            series[_series(row, several)].append((row.tokens, cell.mean, min(cell.scores), max(cell.scores)))
    return series, baseline


def _series(row: MeasuredRow, several: bool) -> str:
    """What a line of a drawing is called: the method, and what tells it from other lines of the method.

    Args:
        row: any.
        several: whether methods were used with several models that were not trained for them.
    """
    same = row.training == "same" and not row.uncompressed
    named = several or row.uncompressed or row.training == "other"
    more = [*(["trained"] if same else [row.short_model] if named else []), *([row.variant] if row.variant else [])]
    return _method(row.compression) + (f" ({', '.join(more)})" if more else "")


def _method(compression: str) -> str:
    """The name of a compression without its budget: what one line of a drawing belongs to."""
    return re.sub(r"-\d{1,4}(?=-|$)", "", compression)


def _free_path(folder: Path, name: str, ending: str, taken: set[Path]) -> Path:
    """Where to write what has a name; of several that make one file name all but the first get a number.

    Args:
        folder: folder of the file.
        name: name, in any characters.
        ending: ending of the file.
        taken: files of this call; the path is added.
    """
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-") or "table"
    paths = (folder / f"{stem}{'' if number == 1 else f'-{number}'}{ending}" for number in count(1))
    path = next(path for path in paths if path not in taken)
    taken.add(path)
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=FOLDER_TO_READ, help="folders with result files and trainings")
    parser.add_argument("--paper", action="store_true", help="beside the published tables that something fits")
    parser.add_argument(
        "--tables",
        metavar="NAMES",
        help="these published tables, measured or not, e.g. 1,visionzip-1 (there are "
        + ", ".join(name.removeprefix("table-") for name in table_names())
        + ")",
    )
    parser.add_argument("--format", choices=sorted(ENDINGS), default="markdown", help="default: markdown")
    parser.add_argument(
        "--out", type=FOLDER_TO_WRITE, metavar="DIR", help="write one file a table here instead of printing"
    )
    parser.add_argument("--plots", action="store_true", help="draw into --out as well; needs matplotlib")
    parser.add_argument(
        "--plot-format", "--plot_format", choices=FORMATS, default=FORMATS[0], help=f"default: {FORMATS[0]}"
    )
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
