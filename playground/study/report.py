"""The study's tables in Markdown and its plots in SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.common.atomic_write import write_whole
from llava.common.shown import shown
from llava.eval.tables.markup import markdown_text
from playground.quickstart.results import BLANK
from playground.quickstart.svg import Chart, ticks
from playground.study.cells import BUDGETS, METHODS, PATCHES, UNCOMPRESSED, Cell, reaches
from playground.study.place import Place
from playground.study.summary import TRAINED, TRAINING_FREE, Row, Summary, summarise

PAPER = {TRAINING_FREE: (99.0, 98.1, 95.4), TRAINED: (99.7, 99.1, 97.6)}
"""Per cent of the uncompressed accuracy at the three budgets: Table 1, DUET C; Table 3, the best of C and C+S."""

HEADINGS = {TRAINING_FREE: "Training-free (the paper's Table 1)", TRAINED: "Trained (the paper's Table 3)"}
COLOURS = {
    "DUET vanilla": "#93c5fd",
    "DUET C": "#1d4ed8",
    "DUET C+all": "#7c3aed",
    "DUET C+S": "#0891b2",
    "VisionZip": "#16a34a",
    "PyramidDrop": "#ca8a04",
    "FastV": "#dc2626",
    "random": "#94a3b8",
    "uniform": "#475569",
}


def write_report(place: Place) -> Path:
    """Write `summary.json`, `study.md` and its plots into the study's folder.

    Raises:
        ValueError: if a cell is not finished.
    """
    summary = summarise(place)
    summary.save(place.root / "summary.json")
    write_plots(summary, place.root)
    report = place.root / "study.md"
    return write_whole(report, f"# The paper's tables in miniature\n\n{tables(summary, Path('.'))}")


def write_plots(summary: Summary, folder: Path) -> None:
    """One SVG file for each half."""
    for half in HEADINGS:
        write_whole(folder / f"study-{half}.svg", plot(summary, half))


def tables(summary: Summary, images: Path) -> str:
    """Everything that was measured, as Markdown.

    Args:
        summary: summary of the study.
        images: folder of the plots, as seen from the document.
    """
    dense, blank = summary.row(TRAINING_FREE, UNCOMPRESSED), summary.row(TRAINING_FREE, BLANK)
    lines = [
        _conditions(summary),
        "",
        f"Uncompressed ({dense.tokens:.0f} visual tokens a layer): {share_text(dense.accuracy)} right "
        f"({share_range(dense.interval)}; seeds {_seeds(dense)}). Blank images: {share_text(blank.accuracy)} "
        f"({share_range(blank.interval)}).",
    ]
    for half, heading in HEADINGS.items():
        lines += ["", f"## {heading}", "", *_relative_table(summary, half), ""]
        lines += [f"![{heading}: accuracy over visual tokens]({images / f'study-{half}.svg'})", ""]
        lines += ["All numbers:", "", *_full_table(summary, half)]
    return "\n".join(lines) + "\n"


def _conditions(summary: Summary) -> str:
    """Machine, time and command."""
    about = summary.about
    seconds = about.get("seconds")
    if seconds is not None and not isinstance(seconds, int):
        raise ValueError(f"about.seconds of the study is {shown(seconds)}; it must be a whole number or null.")
    took = "" if seconds is None else f"; {seconds // 3600} h {seconds % 3600 // 60} min in all"
    said = {key: markdown_text(str(value)) for key, value in about.items()}
    machine = "; ".join(said[key] for key in ("date", "processor", "system", "versions") if about.get(key))
    return (
        f"`bash scripts/quickstart.sh --study`{took}. {machine}. {said['seeds']} seeds; a projector trained on "
        f"{said['pretrain_steps']} batches of captions, each model on {said['finetune_steps']} batches of "
        f"conversations; {summary.rows[0].questions} held-out questions, answered greedily."
    )


def _relative_table(summary: Summary, half: str) -> list[str]:
    """Per cent of the uncompressed accuracy, methods by budgets."""
    lines = [
        "Accuracy in per cent of the uncompressed model's, with its 95 % interval:",
        "",
        "| method | " + " | ".join(f"{budget} % fewer" for budget in BUDGETS) + " |",
        "|---" * (len(BUDGETS) + 1) + "|",
    ]
    for method in METHODS:
        cells = []
        for budget in BUDGETS:
            row = summary.row(half, method, budget)
            mark = "" if reaches(Cell(method, budget)) else " †"
            cells.append(f"{relative_text(row)}{mark}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines.append("| *the paper* | " + " | ".join(f"*{value}*" for value in PAPER[half]) + " |")
    return [*lines, "", "† At about 20 tokens a layer: these methods show all patches to the first layer."]


def _full_table(summary: Summary, half: str) -> list[str]:
    lines = ["| method | fewer | visual tokens | right | 95 % interval | each seed |", "|---" * 6 + "|"]
    for row in summary.rows:
        if row.half == half and row.budget is not None:
            method = markdown_text(row.method)
            fewer = 1 - row.tokens / PATCHES
            lines.append(
                f"| {method} | {fewer:.0%} | {row.tokens:.2f} | {share_text(row.accuracy)} | "
                f"{share_range(row.interval)} | {_seeds(row)} |"
            )
    return lines


def plot(summary: Summary, half: str) -> str:
    """Accuracy over visual tokens a layer, a line for each method; the uncompressed model is a dashed line."""
    most = max(row.tokens for row in summary.rows if row.budget is not None)
    chart = Chart((0, most * 1.45), (0, 1), "visual tokens per layer, on average", "right answers", 760, 440)
    chart.axes(ticks(0, most * 1.05, 6), [0, 0.2, 0.4, 0.6, 0.8, 1], y_text=lambda share: f"{share:.0%}")
    for name in (UNCOMPRESSED, BLANK):
        level = summary.row(TRAINING_FREE, name).accuracy
        chart.line([(0, level), (most * 1.08, level)], "#0f172a" if name == UNCOMPRESSED else "#cbd5e1", 1.5, "5 4")
        across, down = chart.at(most * 1.1, level)
        chart.text(across, down + 4, f"{name} {level:.1%}")
    for number, method in enumerate(METHODS):
        rows = sorted((summary.row(half, method, budget) for budget in BUDGETS), key=lambda row: row.tokens)
        chart.line([(row.tokens, row.accuracy) for row in rows], COLOURS[method])
        for row in rows:
            chart.interval(row.tokens, *row.interval, COLOURS[method])
            chart.dot(
                row.tokens, row.accuracy, COLOURS[method], f"{method}, {row.tokens:.1f} tokens: {row.accuracy:.1%}"
            )
        across, down = chart.at(most * 1.1, 0.78)
        chart.text(across, down + 18 * number, method, colour=COLOURS[method])
    return standalone(chart.svg(f"{HEADINGS[half]}: accuracy over visual tokens"))


def standalone(svg: str) -> str:
    """An SVG element as a file of its own, on white."""
    font = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12" style="background:#fff"'
    return svg.replace("<svg ", f"<svg {font} ", 1) + "\n"


def relative_text(row: Any) -> str:
    """Per cent of the uncompressed accuracy, with its interval, of a row of either study."""
    if row.relative is None or row.relative_interval is None:
        return "-"
    return f"{100 * row.relative:.1f} ({share_range(row.relative_interval)})"


def share_text(value: float) -> str:
    """A share in per cent, as documents write it."""
    return f"{value:.1%}".replace("%", " %")


def share_range(bounds: tuple[float, float]) -> str:
    """An interval of shares, in per cent."""
    return f"{100 * bounds[0]:.1f} - {100 * bounds[1]:.1f}"


def _seeds(row: Row) -> str:
    return " / ".join(f"{100 * right / row.questions:.1f}" for right in row.right)
