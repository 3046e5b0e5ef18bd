"""The table of the video study in Markdown and its plot in SVG."""

from __future__ import annotations

from pathlib import Path

from llava.common.atomic_write import write_whole
from llava.eval.tables.markup import markdown_text
from playground.clips.build import WHOLE
from playground.clips.clip import FRAMES, KINDS
from playground.quickstart.svg import Chart, ticks
from playground.study.cells import UNCOMPRESSED
from playground.study.place import Place
from playground.study.report import COLOURS, relative_text, share_range, share_text, standalone
from playground.study.video.cells import METHODS, TRAINED
from playground.study.video.summary import VideoRow, VideoSummary

PAPER = {53: 100.8, 93: 97.6}
"""Per cent of the uncompressed accuracy by budget: Table 4, Video-LLaVA-7B, DUET C."""

PLOT = "study-video.svg"
TRAINED_COLOURS = {"DUET C": "#7c3aed", "uniform": "#d97706"}


def write_report(place: Place, summary: VideoSummary) -> Path:
    """Write `summary.json`, `study.md` and its plot into the study's folder."""
    summary.save(place.root / "summary.json")
    write_whole(place.root / PLOT, plot(summary))
    return write_whole(place.root / "study.md", f"# The paper's Table 4 in miniature\n\n{table(summary, Path('.'))}")


def table(summary: VideoSummary, images: Path) -> str:
    """Everything that was measured, as Markdown.

    Args:
        summary: summary of the study.
        images: folder of the plot, as seen from the document.
    """
    lines = [
        _conditions(summary),
        "",
        "| shown | model | method | fewer | visual tokens | right | 95 % interval | of uncompressed, % | "
        + " | ".join(KINDS)
        + " |",
        "|---" * (8 + len(KINDS)) + "|",
    ]
    lines += [_line(row, summary.rows[0]) for row in summary.rows]
    paper = " and ".join(f"{value} % at {budget} % fewer" for budget, value in PAPER.items())
    lines += ["", f"The paper's Table 4 has, for DUET C, training-free, {paper}.", ""]
    return "\n".join([*lines, f"![Accuracy on clips over visual tokens]({images / PLOT})"]) + "\n"


def _conditions(summary: VideoSummary) -> str:
    """Machine, time and command."""
    about = {key: markdown_text(str(value)) for key, value in summary.about.items()}
    machine = "; ".join(about[key] for key in ("date", "processor", "system", "versions") if about.get(key))
    seconds = summary.about.get("seconds")
    took = "" if seconds is None else f"; {seconds // 60} minutes in all"
    _, further = about["methods"].split(", ", 1)
    return (
        f"`bash scripts/quickstart.sh --video-study`{took}. {machine}. Seeds: {about['seeds']}; batches: "
        f"{about['pretrain_steps']} of captions, {further}; {summary.rows[0].questions} held-out questions, answered "
        "greedily."
    )


def _line(row: VideoRow, dense: VideoRow) -> str:
    fewer = "-" if row.budget is None else f"{1 - row.tokens / dense.tokens:.0%}"
    shown = "all frames" if row.shown == WHOLE else f"{row.shown} frame, {FRAMES} times"
    kinds = [f"{row.right_of[kind]} / {row.questions_of[kind]}" for kind in KINDS]
    model = "trained under it" if row.trained else "uncompressed"
    cells = [shown, model, markdown_text(row.method), fewer, f"{row.tokens:.1f}", share_text(row.accuracy)]
    return "| " + " | ".join([*cells, share_range(row.interval), relative_text(row), *kinds]) + " |"


def plot(summary: VideoSummary) -> str:
    """Accuracy over visual tokens a layer, a line for each method; dashed: uncompressed, and the best single frame."""
    most = max(row.tokens for row in summary.rows if row.budget is not None)
    chart = Chart((0, most * 1.6), (0, 1), "visual tokens of a video per layer, on average", "right answers", 760, 440)
    chart.axes(ticks(0, most * 1.05, 6), [0, 0.2, 0.4, 0.6, 0.8, 1], y_text=lambda share: f"{share:.0%}")
    single = max((row for row in summary.rows if row.shown != WHOLE), key=lambda row: row.accuracy, default=None)
    for row, name, colour in ((summary.rows[0], UNCOMPRESSED, "#0f172a"), (single, "one frame, at best", "#cbd5e1")):
        if row is not None:
            chart.line([(0, row.accuracy), (most * 1.08, row.accuracy)], colour, 1.5, "5 4")
            across, down = chart.at(most * 1.1, row.accuracy)
            chart.text(across, down + 4, f"{name} {row.accuracy:.1%}")
    drawn = [(method, False) for method in METHODS] + [(method, True) for method in TRAINED]
    for number, (method, trained) in enumerate(drawn):
        own = (row for row in summary.rows if (row.method, row.trained) == (method, trained))
        rows, colour = sorted(own, key=lambda row: row.tokens), TRAINED_COLOURS[method] if trained else COLOURS[method]
        name = f"{method}, trained under it" if trained else method
        chart.line([(row.tokens, row.accuracy) for row in rows], colour)
        for row in rows:
            chart.interval(row.tokens, *row.interval, colour)
            chart.dot(row.tokens, row.accuracy, colour, f"{name}, {row.tokens:.1f}: {row.accuracy:.1%}")
        across, down = chart.at(most * 1.1, 0.5)
        chart.text(across, down + 18 * number, name, colour=colour)
    return standalone(chart.svg("Clips: accuracy over visual tokens"))
