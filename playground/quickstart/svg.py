"""A chart in SVG with two linear axes: enough for the report, without a plotting library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from llava.common.shown import printable

Point = tuple[float, float]

LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 46  # margins that hold ticks and axis names
INK, FAINT = "#475569", "#e2e8f0"


def shown_html(text: object) -> str:
    """Text for HTML, elements and attributes alike; controls, marks of direction and lone surrogates are written out.

    Args:
        text: whatever came from outside.
    """
    return escape(printable(text, lines=True))


def number(value: float) -> str:
    """A coordinate without needless digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass
class Chart:
    """Collects marks in data coordinates and gives an SVG element.

    Attributes:
        x_range, y_range: what the axes span.
        x_name, y_name: written along them.
        width, height: size in pixels, margins included.
    """

    x_range: Point
    y_range: Point
    x_name: str
    y_name: str
    width: int = 520
    height: int = 320
    marks: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> Point:
        """Data coordinates to pixels."""
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        inner_width, inner_height = self.width - LEFT - RIGHT, self.height - TOP - BOTTOM
        return LEFT + across * inner_width, TOP + (1 - up) * inner_height

    def axes(self, x_ticks: Sequence[float], y_ticks: Sequence[float], y_text: Callable[[float], str] = number) -> None:
        """Grid lines, tick labels and the names of the axes."""
        left, bottom = self.at(self.x_range[0], self.y_range[0])
        right, _ = self.at(self.x_range[1], self.y_range[0])
        for y in y_ticks:
            row = self.at(0, y)[1]
            self._line((left, row), (right, row), FAINT, 1)
            self.text(left - 8, row + 4, y_text(y), "end")
        for x in x_ticks:
            self.text(self.at(x, 0)[0], bottom + 18, number(x), "middle")
        self._line((left, bottom), (right, bottom), INK, 1)
        self.text((left + right) / 2, self.height - 8, self.x_name, "middle")
        middle = (TOP + bottom) / 2
        self.text(14, middle, self.y_name, "middle", turn=-90)

    def text(self, x: float, y: float, words: str, anchor: str = "start", colour: str = INK, turn: int = 0) -> None:
        """Words at a place in pixels."""
        rotation = f' transform="rotate({turn} {number(x)} {number(y)})"' if turn else ""
        place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
        self.marks.append(f'<text {place} fill="{colour}"{rotation}>{shown_html(words)}</text>')

    def line(self, points: Sequence[Point], colour: str, width: float = 2, dashes: str = "") -> None:
        """Straight lines from point to point."""
        places = " ".join(",".join(number(value) for value in self.at(*point)) for point in points)
        style = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.marks.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-linejoin="round"{style}/>'
        )

    def dot(self, x: float, y: float, colour: str, hint: str) -> None:
        """A marker that says `hint` when pointed at."""
        across, down = self.at(x, y)
        self.marks.append(
            f'<circle cx="{number(across)}" cy="{number(down)}" r="4.5" fill="{colour}" stroke="#fff" '
            f'stroke-width="1.5"><title>{shown_html(hint)}</title></circle>'
        )

    def interval(self, x: float, low: float, high: float, colour: str) -> None:
        """A vertical error bar."""
        (across, bottom), (_, top) = self.at(x, low), self.at(x, high)
        self._line((across, bottom), (across, top), colour, 1.5)
        for level in (bottom, top):
            self._line((across - 4, level), (across + 4, level), colour, 1.5)

    def _line(self, start: Point, end: Point, colour: str, width: float) -> None:
        (x1, y1), (x2, y2) = start, end
        self.marks.append(
            f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" stroke="{colour}" '
            f'stroke-width="{width}"/>'
        )

    def svg(self, description: str) -> str:
        """The finished element; `description` is read out to those who do not see it."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{shown_html(description)}">'
            f"{''.join(self.marks)}</svg>"
        )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high, about so many."""
    raw = (high - low) / max(about, 1)
    power = 10.0 ** len(str(int(raw))) / 10 if raw >= 1 else 10.0 ** -next(k for k in range(1, 12) if raw * 10**k >= 1)
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = int(low / step) if low >= 0 else int(low / step) - 1
    candidates = [round((first + k) * step, 10) for k in range(int((high - low) / step) + 2)]
    return [value for value in candidates if low - 1e-9 <= value <= high + 1e-9]
