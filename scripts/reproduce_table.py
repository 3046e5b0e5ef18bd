"""The table at the end of `scripts/reproduce.sh`: what a run gave beside the paper's row.

    python scripts/reproduce_table.py --preset duet-192 --folder ./checkpoints/reproduce/llava-v1.5-7b-duet-192

It reads `pretrain/train_summary.json`, `finetune/train_summary.json` and, if there, `results.json` from the folder: an
object with a number for each benchmark that the table of `configs/paper` names. `llava.eval.run --out` leaves those out
where answers are missing; they are shown as `-`, and there is no average then. Where the paper has no model of the
family (`--table none`), the scores of its five benchmarks stand alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common.json_files import need
from llava.common.path_flags import FOLDER_TO_READ
from llava.common.program import as_program
from llava.eval.benchmarks import get_benchmark
from llava.eval.run import PAPER
from llava.eval.tables.published import AVERAGE, PublishedTable, read_table, relative_average
from llava.eval.tables.render import written
from llava.eval.tables.training import (
    PHASES,
    SUMMARY_FILE,
    read_if_there,
    read_summary,
    trained_visual_tokens,
    training_seconds,
    was_resumed,
)

SCORES, TIMES = "table-3", "table-6"
NONE = "none"
"""In place of a table: the paper has no model of the family."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help="budget that was trained")
    parser.add_argument("--folder", type=FOLDER_TO_READ, required=True, help="output of scripts/reproduce.sh")
    parser.add_argument(
        "--table", default=SCORES, help=f"table of configs/paper with the row, or {NONE} (default: {SCORES})"
    )
    parser.add_argument(
        "--phases", nargs="*", default=PHASES, choices=PHASES, help="that were trained; none of a released model"
    )
    parser.add_argument(
        "--uncompressed", type=FOLDER_TO_READ, help="output for the preset none, to compare training times"
    )
    options = parser.parse_args(arguments)
    try:
        print(report(options.preset, options.folder, options.uncompressed, options.table, options.phases))
    except ValueError as error:
        sys.exit(f"reproduce_table: {error}")


def report(
    preset: str,
    folder: Path,
    uncompressed: Path | None = None,
    table_name: str = SCORES,
    phases: Sequence[str] = PHASES,
) -> str:
    """The scores and, below them, tokens and training times.

    Args:
        preset: name of a row of the paper; one that it lacks leaves the row empty.
        folder: folder of the run.
        uncompressed: folder of a run without compression on the same machine, for the share of time saved.
        table_name: name of the table with the paper's row; `none` where it has no model of the family.
        phases: phases that were trained.
    """
    table = None if table_name == NONE else read_table(table_name)
    lines = [
        *score_lines(preset, folder, table),
        *([""] if phases else []),
        *(phase_line(name, folder / name) for name in phases),
    ]
    if table is None:
        lines.append("The paper reports no scores of this family; those of the preset none say what a budget keeps.")
    elif phases and not table.trained:
        lines.append("The paper's row is the released model, compressed at inference only; TRAIN=0 reproduces it.")
    if uncompressed is not None:
        lines.append(saving_line(folder, uncompressed, printed_saving(preset)))
    return "\n".join(lines)


def score_lines(preset: str, folder: Path, table: PublishedTable | None) -> list[str]:
    """The names of the benchmarks, below them the paper's row, where there is a table, and the measured one."""
    path = folder / "results.json"
    columns = {get_benchmark(name).title: name for name in PAPER} if table is None else table.benchmarks
    titles = {get_benchmark(name).title: column for column, name in columns.items() if name is not None}
    found = {titles.get(title, title): score for title, score in read_if_there(path).items()}
    scores = {name: need({name: score}, name, float, str(path)) for name, score in found.items()}
    if table is None:
        return [table_line(preset, [*columns]), table_line("measured", [written(scores.get(name)) for name in columns])]
    row = table.row(preset)
    printed: dict[str, float | None] = {**row.scores, AVERAGE: row.average} if row else {}
    kept = relative_average({name: scores[name] for name in columns if name in scores}, table.baseline.scores)
    measured = scores | ({} if kept is None else {AVERAGE: kept})
    shown = [*columns, AVERAGE]
    return [
        table_line(preset, shown),
        table_line("paper", [written(printed.get(name)) for name in shown]),
        table_line("measured", [written(measured.get(name)) for name in shown]),
    ]


def printed_saving(preset: str) -> float | None:
    """Training time that the paper saves with a preset, in per cent; None where it names none."""
    row = read_table(TIMES).row(preset)
    return None if row is None else next(iter(row.others.values()), None)


def phase_line(name: str, folder: Path) -> str:
    """Training time and visual tokens of a phase."""
    summary = read_summary(folder)
    if not summary:
        return f"{name:<9} not trained yet"
    place = str(folder / SUMMARY_FILE)
    since = " since it was resumed" if was_resumed(summary, place) else ""
    hours = f"{training_seconds(folder) / 3600:.2f} h{since}"
    tokens = trained_visual_tokens(summary, place)
    if tokens is None:
        return f"{name:<9} {hours}, visual tokens were not recorded"
    return f"{name:<9} {hours}, {tokens:.2f} visual tokens per image and layer on average"


def saving_line(folder: Path, uncompressed: Path, paper: float | None) -> str:
    """Training time of both phases as against the run without compression."""
    seconds = [sum(training_seconds(run / name) for name in PHASES) for run in (folder, uncompressed)]
    if not all(seconds):
        return "training time saved: one of the runs has no train_summary.json"
    phases = [run / name for run in (folder, uncompressed) for name in PHASES]
    if any(was_resumed(read_summary(phase), str(phase / SUMMARY_FILE)) for phase in phases):
        return "training time saved: not known, for one of the runs was resumed and lacks the time before that"
    saved = 100 * (1 - seconds[0] / seconds[1])
    return f"training time saved: {saved:.1f} % (paper: {written(paper)} %)"


def table_line(title: str, cells: Sequence[str]) -> str:
    """One row, cells set flush right."""
    return " ".join([f"{title:<19}", *(f"{cell:>7}" for cell in cells)]).rstrip()


if __name__ == "__main__":
    sys.exit(as_program(main))
