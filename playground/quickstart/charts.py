"""The charts of the report."""

from __future__ import annotations

from collections.abc import Sequence

from playground.quickstart.results import BLANK, Results, Row
from playground.quickstart.svg import Chart, Point, shown_html, ticks

COLOURS = {"duet": "#2563eb", "random": "#ea580c", "uniform": "#0d9488", "none": "#0f172a", BLANK: "#94a3b8"}
SHADES = ("#0f172a", "#1e40af", "#2563eb", "#0ea5e9")


def family(name: str) -> str:
    """`duet-67` belongs to `duet`."""
    return name.rsplit("-", 1)[0] if "-" in name else name


def colour(name: str) -> str:
    """Colour of a setting or family."""
    return COLOURS.get(family(name), "#64748b")


def percent(value: float) -> str:
    """A share as a tick label."""
    return f"{value:.0%}"


def accuracy_chart(table: Sequence[Row]) -> str:
    """Accuracy over the token budget: a line for each way of choosing, reference lines for none and blank."""
    dense = table[0]
    chart = Chart((0, dense.tokens * 1.06), (0, 1), "visual tokens per layer, on average", "right answers", 560, 360)
    chart.axes(ticks(0, dense.tokens * 1.05, 6), [0, 0.2, 0.4, 0.6, 0.8, 1], y_text=percent)
    for row in table:
        if row.name == BLANK:
            level = row.accuracy.value
            chart.line([(0, level), (dense.tokens * 1.06, level)], colour(BLANK), 1.5, "5 4")
            across, down = chart.at(dense.tokens * 1.05, level)
            chart.text(across, down - 6, f"{BLANK} {level:.1%}", "end")
    for name in dict.fromkeys(family(row.name) for row in table if row.name not in (BLANK, dense.name)):
        members = sorted((row for row in table if family(row.name) == name), key=lambda row: row.tokens)
        points = [(row.tokens, row.accuracy.value) for row in members]
        chart.line([*points, (dense.tokens, dense.accuracy.value)], colour(name))
    for row in table:
        if row.name != BLANK:
            chart.interval(row.tokens, row.accuracy.low, row.accuracy.high, colour(row.name))
            chart.dot(row.tokens, row.accuracy.value, colour(row.name), f"{row.name}: {row.accuracy.value:.1%}")
    return chart.svg("Accuracy over the average number of visual tokens per layer")


def staircase_chart(results: Results) -> str:
    """Visual tokens seen by each decoder layer, for the uncompressed model and the DUET budgets."""
    shown = [s for s in results.settings if s.name == results.settings[0].name or family(s.name) == "duet"]
    layers = len(shown[0].tokens_per_layer)
    most = max(max(setting.tokens_per_layer) for setting in shown)
    chart = Chart((0.5, layers + 0.5), (0, most * 1.12), "decoder layer", "visual tokens", 560, 360)
    step = max(1, layers // 16)
    chart.axes(range(1, layers + 1, step), ticks(0, most, 6))
    for setting, shade in zip(shown, SHADES, strict=False):
        steps: list[Point] = []
        for layer, count in enumerate(setting.tokens_per_layer, start=1):
            steps += [(layer - 0.5, count), (layer + 0.5, count)]
        chart.line(steps, shade, 2.5)
        across, down = chart.at(0.5, setting.tokens_per_layer[0])
        chart.text(across + 6, down - 6, f"{setting.name}: {setting.average_tokens:.4g} on average", colour=shade)
    return chart.svg("Visual tokens seen by each decoder layer")


def loss_chart(curve: Sequence[Point], name: str) -> str:
    """Training loss over steps; each point is the mean since the point before."""
    highest, last = max(loss for _, loss in curve), max(step for step, _ in curve)
    chart = Chart((0, max(last, 1)), (0, highest * 1.05), "optimizer step", "loss", 520, 260)
    chart.axes(ticks(0, max(last, 1), 6), ticks(0, highest * 1.05, 5))
    chart.line(curve, COLOURS["duet"], 2)
    return chart.svg(f"Training loss of {name}")


def legend(names: Sequence[str]) -> str:
    """Colour keys for families of settings, as HTML."""
    keys = (f'<span class="key"><i style="background:{colour(name)}"></i>{shown_html(name)}</span>' for name in names)
    return f'<p class="legend">{"".join(keys)}</p>'
