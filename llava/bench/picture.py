"""Draws where the time of each case goes: a bar for each, its parts one behind another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llava.bench.attribution import Attribution, ordered

FORMATS = (".svg", ".png", ".pdf")


def check_picture(path: Path) -> None:
    """Raise ValueError where a drawing cannot be written to a path: its ending, or matplotlib is not there."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--picture is {path}; a drawing must end in {', '.join(FORMATS)}.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError('--picture needs matplotlib; install it with pip install "duet-llava[eval]".') from error


def draw(groups: Mapping[str, Mapping[str, Attribution]], path: Path) -> None:
    """Write a drawing: one block of bars for each mode and text.

    Args:
        groups: attributions of the cases of each mode and text, by name.
        path: file to write; its ending is the format.
    """
    from matplotlib.figure import Figure

    cases = sum(map(len, groups.values()))
    figure = Figure(figsize=(11, 1.6 + 0.42 * cases + 0.7 * len(groups)), layout="constrained")
    every = {name: part for held in groups.values() for one in held.values() for name, part in one.parts.items()}
    colours = _colours(list(ordered(every)))
    heights = [max(len(held), 1) for held in groups.values()]
    axes = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for place, (title, held) in zip(axes, groups.items(), strict=True):
        for number, attribution in enumerate(held.values()):
            left = 0.0
            for name, part in ordered(attribution.parts).items():
                place.barh(number, part.total, left=left, color=colours[name], label=name)
                left += part.total
        place.set_yticks(range(len(held)), list(held))
        place.invert_yaxis()
        place.set_title(title, loc="left")
        place.set_xlabel("ms, forward and backward")
    shown = {name: patch for place in axes for patch, name in zip(*place.get_legend_handles_labels(), strict=True)}
    names = [name for name in colours if name in shown]
    figure.legend([shown[name] for name in names], names, loc="outside lower center", ncols=6)
    figure.savefig(path)


def _colours(names: list[str]) -> dict[str, str]:
    """A colour for each part; layers are shades of one."""
    palette = iter(f"C{number}" for number in (1, 2, 3, 4, 5, 6, 8, 9, 1, 2, 3))
    blues = iter(("#1f4e79", "#3f7fb5", "#79aedb", "#b3d3ee", "#d6e8f7"))
    return {
        name: "0.6"
        if name == "other"
        else next(blues, "#d6e8f7")
        if name.startswith("layers")
        else next(palette, "0.8")
        for name in names
    }
