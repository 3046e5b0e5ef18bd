"""Two budgets side by side: visual tokens by layer as a staircase, and a table of what the answers took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from llava.inference.usage import size
from llava.serve.web.measured_answer import MeasuredAnswer

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 230, 46, 12, 14, 36


def comparison_html(names: Sequence[str], measured: Sequence[MeasuredAnswer | None]) -> str:
    """The staircase and the table, as HTML; all text is escaped.

    Args:
        names: names of the budgets.
        measured: what their answers took; None for one that gave none.
    """
    told = [(name, one, number) for number, (name, one) in enumerate(zip(names, measured, strict=True)) if one]
    if not told:
        return '<p class="dv-hint">Ask a question to see what each budget costs.</p>'
    return f'<div class="dv-compare">{_staircase(told)}{_table(told)}</div>'


def _staircase(told: Sequence[tuple[str, MeasuredAnswer, int]]) -> str:
    """A line for each budget over the layers, with its own colour, dashes and name."""
    layers = max(len(one.visual_tokens) for _, one, _ in told)
    most = max(max(one.visual_tokens, default=0) for _, one, _ in told) or 1
    across, down = (WIDTH - LEFT - RIGHT) / layers, (HEIGHT - TOP - BOTTOM) / (most * 1.08)

    def x(layer: float) -> float:
        return round(LEFT + across * layer, 1)

    def y(tokens: float) -> float:
        return round(HEIGHT - BOTTOM - down * tokens, 1)

    ticks = sorted({0, most // 2, most})
    grid = "".join(
        f'<line class="dv-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
        f'<text class="dv-tick" x="{LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{tick:,}</text>'
        for tick in ticks
    )
    step = max(1, round(layers / 8))
    grid += "".join(
        f'<text class="dv-tick" x="{x(layer + 0.5)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{layer}</text>'
        for layer in range(0, layers, step)
    )
    lines = ""
    for _, one, number in told:
        tokens = one.visual_tokens
        points = " ".join(f"{x(layer)},{y(count)} {x(layer + 1)},{y(count)}" for layer, count in enumerate(tokens))
        area = f"{x(0)},{y(0)} {points} {x(len(tokens))},{y(0)}"
        lines += f'<polygon class="dv-area dv-side{number}" points="{area}"/>'
        lines += f'<polyline class="dv-line dv-side{number}" points="{points}"/>'
    said = "; ".join(f"{name}: {one.average:.1f} on average" for name, one, _ in told)
    keys = "".join(
        f'<li><svg viewBox="0 0 34 12" aria-hidden="true"><line class="dv-line dv-side{number}" x1="1" x2="33" y1="6" '
        f'y2="6"/></svg> {"AB"[number]}: {escape(name)}</li>'
        for name, _, number in told
    )
    return (
        f'<figure class="dv-stairs"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"Visual tokens in each decoder layer. {said}.")}">{grid}{lines}'
        f'<text class="dv-tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">layer</text>'
        f"</svg><figcaption>Visual tokens in each decoder layer<ul>{keys}</ul></figcaption></figure>"
    )


def _table(told: Sequence[tuple[str, MeasuredAnswer, int]]) -> str:
    """Numbers of each budget in a column of its own."""
    answers = [one for _, one, _ in told]
    rows = (
        ("Visual tokens, mean", [_share(one) for one in answers]),
        ("Prefill, with tower", _compared([one.prefill_seconds for one in answers], milliseconds)),
        ("FLOPs of the prefill", _compared([one.flops for one in answers], flops)),
        ("KV cache", _compared([one.kv_bytes for one in answers], lambda count: size(int(count or 0)))),
        ("Tokens a second", [rate(one.tokens_per_second) for one in answers]),
        ("Tokens of the answer", [f"{one.new_tokens:,}" for one in answers]),
    )
    head = "".join(
        f'<th scope="col"><span class="dv-dot dv-side{number}" aria-hidden="true"></span>'
        f"{'AB'[number]}: {escape(name)}</th>"
        for name, _, number in told
    )
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for name, values in rows
    )
    note = (
        "Measured on this machine: the prefill is the fastest of up to three, run in turns (slow ones run once); "
        "tokens a second are those of this one answer. FLOPs are computed."
    )
    return (
        f'<table class="dv-table"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
        f'<p class="dv-hint">{note}</p>'
    )


def _share(one: MeasuredAnswer) -> str:
    """Visual tokens that a layer saw, of those that there would be."""
    return f"{one.average:.1f}".removesuffix(".0") + f" of {one.patches:,}"


def _compared(values: Sequence[float | None], written: Callable[[Any], str]) -> list[str]:
    """Values of a row as text, each with how many times less it is than the largest."""
    most = max((value for value in values if value), default=0)
    return [
        written(value) + (f" ({most / value:.2g} times less)" if value and most / value >= 1.05 else "")
        for value in values
    ]


def milliseconds(seconds: float) -> str:
    """A duration for the table."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def rate(tokens: float | None) -> str:
    """Tokens a second for the table."""
    return "one token only" if tokens is None else f"{tokens:.1f}"


def flops(count: float | None) -> str:
    """FLOPs in the largest unit that they fill."""
    if count is None:
        return "not known for this model"
    units = ("", "k", "M", "G", "T", "P")
    step = min(max((len(str(int(count))) - 1) // 3, 0), len(units) - 1)
    return f"{count / 1000**step:.3g} {units[step]}FLOP"
