"""Curves over budgets of visual tokens, drawn with matplotlib: accuracy with its spread, and training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.common.atomic_write import whole_file
from llava.common.shown import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float, float, float]
"""Visual tokens, mean, lowest and highest value."""
Series = Mapping[str, Sequence[Point]]
"""Points of each method."""
FORMATS = (".svg", ".png", ".pdf")
_MARKERS = "osD^vPX*"


def accuracy_over_budget(
    series: Series, path: Path, *, title: str = "", ylabel: str = "accuracy (%)", baseline: float | None = None
) -> Path:
    """Draw one line with error bars for each method and write the file.

    Args:
        series: points of each method, in any order; a point's bar reaches from its lowest to its highest value.
        path: file to write; its ending is the format.
        title: above the drawing.
        ylabel: what the values are.
        baseline: value without compression, drawn as a dashed line.

    Returns:
        The path.

    Raises:
        ValueError: if matplotlib is missing, the format is unknown, there is no point, or a point's mean lies outside
            its bar.
    """
    _check(series, path)
    figure = _figure()
    axes = figure.add_subplot()
    for index, (method, points) in enumerate(series.items()):
        tokens, means, lows, highs = (list(values) for values in zip(*sorted(points), strict=True))
        below = [value - low for value, low in zip(means, lows, strict=True)]
        above = [high - value for value, high in zip(means, highs, strict=True)]
        marker = _MARKERS[index % len(_MARKERS)]
        axes.errorbar(tokens, means, yerr=[below, above], marker=marker, markersize=5, capsize=3, label=_label(method))
    if baseline is not None:
        axes.axhline(baseline, linestyle="--", color="0.4", label="uncompressed")
    axes.set_title(printable(title), parse_math=False)
    axes.set_xlabel("visual tokens in a decoder layer, on average")
    axes.set_ylabel(printable(ylabel), parse_math=False)
    axes.grid(alpha=0.3)
    for text in axes.legend().get_texts():
        text.set_parse_math(False)
    _save(figure, path)
    return path


def _label(method: str) -> str:
    """A name for the legend, which leaves out what begins with an underscore."""
    name = printable(method)
    return f" {name}" if name.startswith("_") else name


def _check(series: Series, path: Path) -> None:
    """Raise ValueError unless there is something to draw and somewhere to put it."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} ends in {path.suffix!r}; a drawing must end in {', '.join(FORMATS)}.")
    if not series or not all(series.values()):
        raise ValueError(f"There is nothing to draw for {path}: every method needs at least one point.")
    for method, points in series.items():
        for tokens, value, low, high in points:
            if not low <= value <= high:
                raise ValueError(
                    f"{method} at {tokens:g} tokens is {value:g}, outside its bar from {low:g} to {high:g}."
                )


def _figure() -> Figure:
    """An empty figure that belongs to no window and no global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("Drawing needs matplotlib, which is not installed: pip install matplotlib.") from error
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    """Write the file so that the same numbers give the same bytes: ids in an SVG are random without a salt, and SVG and
    PDF hold the date unless they are told not to."""
    from matplotlib import rc_context

    kind = path.suffix.lower().removeprefix(".")
    undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with rc_context({"svg.hashsalt": "llava.eval.tables.plots"}), whole_file(path, "wb") as file:
        figure.savefig(file, dpi=150, metadata=undated, format=kind)
