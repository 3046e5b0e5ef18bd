"""An image with its patches marked: what V2V kept, merged and dropped, and how far T2V let the rest come."""

from __future__ import annotations

import base64
import math
from pathlib import Path

from llava.compression.v2v import PatchRole
from playground.quickstart.results import Trace
from playground.quickstart.svg import number, shown_html

SIDE = 240
CLUSTERS = ("#e11d48", "#7c3aed", "#0891b2", "#65a30d", "#d97706", "#db2777", "#2563eb", "#059669", "#92400e")


def embedded(path: Path) -> str:
    """A PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def plain_picture(path: Path, name: str) -> str:
    """The image alone, enlarged; `name` identifies it on the page for `marked_picture`."""
    place = f'width="{SIDE}" height="{SIDE}" preserveAspectRatio="none"'
    return _svg(f'<image id="{shown_html(name)}" href="{embedded(path)}" {place}/>')


def marked_picture(name: str, trace: Trace) -> str:
    """The image that a `plain_picture` on the page named so, under the marks of a trace."""
    columns = math.isqrt(len(trace.fate))
    side = SIDE / columns
    last = max((layer for layer in trace.dropped_after if layer is not None), default=None)
    marks = []
    for patch, (fate, target) in enumerate(zip(trace.fate, trace.target, strict=True)):
        row, column = divmod(patch, columns)
        x, y = column * side, row * side
        if fate == PatchRole.DROPPED:
            marks.append(_square(x, y, side, 'fill="#fff" fill-opacity=".82"'))
            continue
        dropped = trace.dropped_after[target]
        if fate in (PatchRole.ANCHOR, PatchRole.MERGED):
            marks.append(_cluster_mark(x, y, side, trace, target, fate == PatchRole.ANCHOR))
        if dropped is not None and dropped != last:
            marks.append(_square(x, y, side, 'fill="url(#stripes)"'))
        else:
            marks.append(_square(x + 1, y + 1, side - 2, 'fill="none" stroke="#f97316" stroke-width="2"'))
    return _svg(f'<use href="#{shown_html(name)}"/>{"".join(marks)}')


def legend(trace: Trace) -> str:
    """What the marks mean, as HTML, with the layers of this trace."""
    layers = sorted({layer for layer in trace.dropped_after if layer is not None})
    keys = [
        ("background:#64748b", "dominant: kept by V2V as it is, seen unchanged"),
        ("background:#fff;opacity:.9", "dropped by V2V"),
        (f"background:{CLUSTERS[0]}99", "merged by V2V, one colour for each merged token; the dot is its anchor"),
    ]
    keys += [
        (
            "background:repeating-linear-gradient(45deg,#1e293b 0 2px,#cbd5e1 2px 6px)",
            f"dropped by T2V after layer {layer}",
        )
        for layer in layers[:-1]
    ]
    end = f"there until T2V dropped the rest after layer {layers[-1]}" if layers else "there to the last layer"
    keys.append(("background:#fff;border:2px solid #f97316", end))
    spans = (f'<span class="key"><i style="{style}"></i>{shown_html(text)}</span>' for style, text in keys)
    return f'<p class="legend">{"".join(spans)}</p>'


def _cluster_mark(x: float, y: float, side: float, trace: Trace, target: int, is_anchor: bool) -> str:
    merged = sorted({token for token, fate in zip(trace.target, trace.fate, strict=True) if fate == PatchRole.ANCHOR})
    shade = CLUSTERS[merged.index(target) % len(CLUSTERS)]
    mark = _square(x, y, side, f'fill="{shade}" fill-opacity=".55"')
    if is_anchor:
        mark += f'<circle cx="{number(x + side / 2)}" cy="{number(y + side / 2)}" r="{number(side / 5)}" fill="#fff"/>'
    return mark


def _square(x: float, y: float, side: float, style: str) -> str:
    return f'<rect x="{number(x)}" y="{number(y)}" width="{number(side)}" height="{number(side)}" {style}/>'


def _svg(content: str) -> str:
    return f'<svg class="patches" viewBox="0 0 {SIDE} {SIDE}">{content}</svg>'


STRIPES = (
    '<svg width="0" height="0" style="position:absolute"><defs><pattern id="stripes" width="5" height="5" '
    'patternTransform="rotate(45)" patternUnits="userSpaceOnUse"><rect width="5" height="5" fill="#fff" '
    'fill-opacity=".25"/><rect width="1.6" height="5" fill="#1e293b" fill-opacity=".8"/></pattern></defs></svg>'
)
