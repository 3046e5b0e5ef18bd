"""A picture of what became of every patch of an image: kept or merged by V2V, and there until which layer.

One row for each image: the image as the tower sees it, then a panel for each run of layers between two drops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from llava.compression.v2v import PatchRole
from llava.model.trace import CompressionTrace

SIDE = 336
MARGIN, GAP, TITLE = 16, 12, 44
INK, FAINT, PAPER = "#1e293b", "#64748b", "#ffffff"
VEIL = 210
"""Opacity, 0 to 255, of the white over a patch that no token stands for."""
SHADE = 150
"""Opacity, 0 to 255, of the colour over a merged patch."""
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
"""Of Okabe and Ito, which people with any kind of colour vision tell apart; the most different ones first."""


@dataclass(frozen=True)
class Patches:
    """The patches of one image.

    Attributes:
        roles: role of each patch, a `PatchRole`.
        token: number of the visual token of its row that stands for each patch; -1 where none does.
    """

    roles: list[int]
    token: list[int]

    @property
    def columns(self) -> int:
        """Patches along a side."""
        return math.isqrt(len(self.roles))

    def colour(self, token: int) -> str:
        """One for each merged token, in turn."""
        merged = sorted({self.token[n] for n, role in enumerate(self.roles) if role == PatchRole.ANCHOR})
        return COLOURS[merged.index(token) % len(COLOURS)]


@dataclass(frozen=True)
class DrawnStage:
    """A run of layers between two drops.

    Attributes:
        name: its layers.
        alive: bool [N], which of the visual tokens of the row are there.
    """

    name: str
    alive: Tensor


def draw_overlay(trace: CompressionTrace, pixels: Sequence[Tensor], image_processor: Any, layers: int) -> Image.Image:
    """The picture of a traced prompt.

    Args:
        trace: trace of one row.
        pixels: its images, crops and frames [3, height, width] as they went into the tower, square.
        image_processor: that made them; of a Video-LLaVA one for `image` and one for `video`.
        layers: number of layers of the decoder.
    """
    stages = _stages(trace, layers)
    each = trace.entered[0] // len(pixels)
    has_cls = trace.merged.has_cls if trace.merged is not None else each > len(_patches(trace, 0, each).roles)
    unseen = " (one is CLS)" if has_cls else ""
    rows = []
    for number, image in enumerate(pixels):
        patches = _patches(trace, number, each)
        plain = _as_seen(image, image_processor, patches.columns)
        mine = slice(number * each, (number + 1) * each)
        panels = [_titled(plain, f"image {number + 1} of {len(pixels)}", f"{len(patches.roles)} patches")]
        for stage in stages:
            there = int(stage.alive[mine].sum())
            marked = _marked(plain, patches, stage.alive)
            panels.append(_titled(marked, stage.name, f"{there} of its {each} visual tokens{unseen}"))
        rows.append(_beside(panels))
    width = max(row.width for row in rows) + 2 * MARGIN
    return _stacked([*rows, _legend(width - 2 * MARGIN, trace.merged is not None, bool(trace.alive))], width)


def _stages(trace: CompressionTrace, layers: int) -> list[DrawnStage]:
    starts = [0, *trace.alive]
    ends = [*trace.alive, layers]
    first = torch.ones(trace.entered[0], dtype=torch.bool)
    alive = [first, *(flags[0].cpu() for flags in trace.alive.values())]
    return [
        DrawnStage(f"layers {start} to {end - 1}", flags) for start, end, flags in zip(starts, ends, alive, strict=True)
    ]


def _patches(trace: CompressionTrace, number: int, each: int) -> Patches:
    """Where the patches of image `number` went, whose `each` tokens stand together in the row."""
    start = number * each
    if trace.merged is not None:
        target = trace.merged.target[number].tolist()
        return Patches(trace.merged.roles[number].tolist(), [start + token if token >= 0 else -1 for token in target])
    count = math.isqrt(each) ** 2  # one token more is CLS, in front
    return Patches([int(PatchRole.DOMINANT)] * count, list(range(start + each - count, start + each)))


def _as_seen(pixels: Tensor, image_processor: Any, columns: int) -> Image.Image:
    """The image behind normalised pixels, enlarged so that patches are whole pixels."""
    image = picture_of(pixels, image_processor)
    side = columns * max(4, round(SIDE / columns))
    return image.resize((side, side), Image.Resampling.BICUBIC)


def picture_of(pixels: Tensor, image_processor: Any) -> Image.Image:
    """The image behind normalised pixels.

    Args:
        pixels: [3, height, width] as they went into the tower.
        image_processor: that normalised them; of a Video-LLaVA one for `image` and one for `video`.
    """
    made = image_processor.get("image") or image_processor["video"] if isinstance(image_processor, Mapping) else None
    processor = made or image_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    colours = (pixels.float().cpu() * std + mean).clamp(0, 1) * 255  # [3, height, width]
    return Image.fromarray(colours.round().byte().permute(1, 2, 0).contiguous().numpy())


def _marked(plain: Image.Image, patches: Patches, alive: Tensor) -> Image.Image:
    """The image with everything veiled that no living token stands for, and merged patches in colour."""
    marks = Image.new("RGBA", plain.size)
    draw = ImageDraw.Draw(marks)
    side = plain.width // patches.columns
    for patch, (role, token) in enumerate(zip(patches.roles, patches.token, strict=True)):
        row, column = divmod(patch, patches.columns)
        x, y = column * side, row * side
        box = (x, y, x + side - 1, y + side - 1)
        if token < 0 or not alive[token]:
            draw.rectangle(box, fill=(255, 255, 255, VEIL))
        elif role in (PatchRole.ANCHOR, PatchRole.MERGED):
            draw.rectangle(box, fill=(*_rgb(patches.colour(token)), SHADE))
            if role == PatchRole.ANCHOR:
                inset = side // 4
                draw.ellipse((x + inset, y + inset, x + side - 1 - inset, y + side - 1 - inset), fill=PAPER)
    return Image.alpha_composite(plain.convert("RGBA"), marks).convert("RGB")


def _titled(picture: Image.Image, title: str, below: str) -> Image.Image:
    """A picture under two lines of text."""
    sheet = Image.new("RGB", (picture.width, picture.height + TITLE), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((0, 0), title, fill=INK, font=_font(17))
    draw.text((0, 22), below, fill=FAINT, font=_font(14))
    sheet.paste(picture, (0, TITLE))
    draw.rectangle((0, TITLE, picture.width - 1, sheet.height - 1), outline="#cbd5e1")
    return sheet


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, pictures[0].height), PAPER)
    at = 0
    for picture in pictures:
        sheet.paste(picture, (at, 0))
        at += picture.width + GAP
    return sheet


def _stacked(pictures: Sequence[Image.Image], width: int) -> Image.Image:
    height = sum(picture.height + MARGIN for picture in pictures) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    at = MARGIN
    for picture in pictures:
        sheet.paste(picture, (MARGIN, at))
        at += picture.height + MARGIN
    return sheet


def _legend(width: int, merges: bool, drops: bool) -> Image.Image:
    """What the marks mean, in as many lines as the width asks for."""
    keys = [(_swatch(), "unchanged: the patch is a visual token of its own")]
    if merges:
        keys.append((_swatch(COLOURS[0], dot=False), "merged by V2V, a colour for each merged token"))
        keys.append((_swatch(COLOURS[0], dot=True), "the patch that a merged token is built around"))
    if merges or drops:
        causes = " or ".join(["dropped by V2V"] * merges + ["by T2V before these layers"] * drops)
        causes = causes if merges else "dropped by T2V before these layers"
        keys.append((_swatch(veiled=True), causes))
    font, line, places, x, y = _font(14), 26, [], 0, 0
    for swatch, text in keys:
        needed = swatch.width + 8 + int(font.getlength(text)) + 28
        if x and x + needed > width:
            x, y = 0, y + line
        places.append((x, y))
        x += needed
    sheet = Image.new("RGB", (width, y + line), PAPER)
    draw = ImageDraw.Draw(sheet)
    for (swatch, text), (x, y) in zip(keys, places, strict=True):
        sheet.paste(swatch, (x, y + 2))
        draw.text((x + swatch.width + 8, y + 3), text, fill=INK, font=font)
    return sheet


def _swatch(colour: str | None = None, dot: bool = False, veiled: bool = False) -> Image.Image:
    """A patch of a neutral image, marked as in the panels."""
    swatch = Image.new("RGBA", (20, 20), "#94a3b8")
    if colour is not None:
        swatch.alpha_composite(Image.new("RGBA", swatch.size, (*_rgb(colour), SHADE)))
    if veiled:
        swatch.alpha_composite(Image.new("RGBA", swatch.size, (255, 255, 255, VEIL)))
    draw = ImageDraw.Draw(swatch)
    if dot:
        draw.ellipse((5, 5, 14, 14), fill=PAPER)
    draw.rectangle((0, 0, 19, 19), outline="#64748b")
    return swatch.convert("RGB")


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)
