"""The pictures of a prompt with their patches, as HTML: which were kept, merged and dropped, layer by layer.

What moves (the slider over layers, hovering, keys) is done by `page.js`, which reads the data from `data-view`; what is
here is how the first layer looks. All text is escaped.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from html import escape

from PIL import Image

from llava.compression.v2v import PatchRole
from llava.model.traced_media import TracedUnit
from llava.serve.overlay import COLOURS
from llava.serve.web.followed_prompt import FollowedPrompt
from llava.serve.web.shown_messages import data_address

STEP = 10
"""Side of a patch in the drawing."""
LONGEST_SIDE = 448
"""Pixels of a picture that is sent to the browser, unless its patches are many."""
LEAST_PATCH = 6
"""Pixels on a side of the smallest patch that is drawn; a picture of many is scrolled."""
MOST_NUMBERS = 150_000
"""Attention values that are sent to the browser; of more layers some are left out."""
TEXTURES = ("plain", "dots", "lines")


def patch_view_html(prompt: FollowedPrompt | None, title: str) -> str:
    """The view of a prompt; a sentence where there is none.

    Args:
        prompt: prompt behind an answer; None where it showed nothing.
        title: name of the budget.
    """
    if prompt is None:
        return '<p class="dv-hint">Ask about a picture to see what became of its patches.</p>'
    if not prompt.units:
        return f'<div class="dv-view"><p class="dv-hint">{escape(prompt.reason)}</p>{_words(prompt)}</div>'
    uid = f"dv{secrets.token_hex(4)}"
    data = json.dumps(_data(prompt), separators=(",", ":"))
    drawn = "".join(
        _figure(uid, number, unit, name, picture)
        for number, (unit, name, picture) in enumerate(zip(prompt.units, prompt.names, prompt.pictures, strict=True))
    )
    return (
        f'<section class="dv-view" id="{uid}" data-view="{escape(data)}" '
        f'aria-label="{escape(f"Patches under {title}")}">'
        f"{_controls(uid, prompt)}"
        f'<div class="dv-strip">{drawn}</div>'
        f'<p class="dv-said" id="{uid}-said" role="status">Point at a patch, or move to a picture with Tab and walk '
        "over its patches with the arrow keys.</p>"
        f"{_legend(prompt)}{_words(prompt)}</section>"
    )


def _data(prompt: FollowedPrompt) -> dict[str, object]:
    """What `page.js` reads."""
    step = max(1, -(-prompt.layers * prompt.tokens // MOST_NUMBERS))
    kept = range(0, prompt.layers, step)
    return {
        "layers": prompt.layers,
        "cuts": prompt.cuts,
        "gone": prompt.gone,
        "attention": {str(layer): prompt.attention[layer] for layer in kept},
        "units": [
            {"columns": unit.columns, "roles": unit.roles, "tokens": unit.tokens, "name": name}
            for unit, name in zip(prompt.units, prompt.names, strict=True)
        ],
    }


def _controls(uid: str, prompt: FollowedPrompt) -> str:
    at = f"0, of 0 to {prompt.layers - 1}"
    return (
        '<div class="dv-controls">'
        f'<label class="dv-layer" for="{uid}-layer">Layer <output id="{uid}-at">{at}</output></label>'
        f'<input class="dv-slider" id="{uid}-layer" type="range" min="0" max="{prompt.layers}" value="1" step="1" '
        f'aria-valuetext="layer {at}">'
        '<button class="dv-play" type="button" aria-pressed="false">Play</button>'
        f'<fieldset class="dv-modes"><legend>Show</legend>'
        f'<label><input type="radio" name="{uid}-mode" value="kept" checked> what was kept</label>'
        f'<label><input type="radio" name="{uid}-mode" value="attention"> attention of the question</label></fieldset>'
        "</div>"
    )


def _figure(uid: str, number: int, unit: TracedUnit, name: str, picture: Image.Image) -> str:
    """A picture under a rectangle for each patch."""
    width, height = unit.columns * STEP, unit.rows * STEP
    longest = max(LONGEST_SIDE, 2 * LEAST_PATCH * max(unit.rows, unit.columns))
    groups = _groups(unit)
    rects, dots = [], []
    for patch, (role, token) in enumerate(zip(unit.roles, unit.tokens, strict=True)):
        row, column = divmod(patch, unit.columns)
        place = f'x="{column * STEP}" y="{row * STEP}" width="{STEP}" height="{STEP}" data-p="{patch}"'
        look, fill = _look(uid, role, token, groups)
        rects.append(f'<rect class="{look}" {place}{fill}/>')
        if role == PatchRole.ANCHOR:
            dots.append(
                f'<circle class="dv-anchor" cx="{column * STEP + STEP / 2}" cy="{row * STEP + STEP / 2}" r="2.2" '
                f'data-t="{token}"/>'
            )
    roles = Counter(unit.roles)
    told = (
        f"{name}, {unit.rows} by {unit.columns} patches: {roles[PatchRole.DOMINANT]} kept as they are, "
        f"{roles[PatchRole.ANCHOR] + roles[PatchRole.MERGED]} merged into {len(groups)} tokens, "
        f"{roles[PatchRole.DROPPED]} dropped behind the vision tower"
    )
    return (
        f'<figure class="dv-figure" style="--dv-least: {unit.columns * LEAST_PATCH}px">'
        f'<svg class="dv-map" viewBox="0 0 {width} {height}" tabindex="0" role="application" '
        f'aria-roledescription="map of patches" aria-label="{escape(told)}" aria-describedby="{uid}-said" '
        f'data-unit="{number}"><title>{escape(told)}</title>{_patterns(uid, number)}'
        f'<image href="{data_address(picture, longest)}" width="{width}" height="{height}" '
        'preserveAspectRatio="none"/>'
        f'<g class="dv-patches">{"".join(rects)}</g><g class="dv-anchors">{"".join(dots)}</g>'
        f'<g class="dv-links" aria-hidden="true"></g></svg>'
        f'<figcaption>{escape(name)}: <span class="dv-count"></span></figcaption></figure>'
    )


def _groups(unit: TracedUnit) -> dict[int, int]:
    """A number for each merged token of a unit, in the order of its patches."""
    anchors = dict.fromkeys(
        token for role, token in zip(unit.roles, unit.tokens, strict=True) if role == PatchRole.ANCHOR
    )
    return {token: number for number, token in enumerate(anchors)}


def _look(uid: str, role: int, token: int, groups: dict[int, int]) -> tuple[str, str]:
    """Class of a patch's rectangle, and the attribute that fills a merged one."""
    if token < 0:
        return "dv-p dv-dropped", f' fill="url(#{uid}-v2v)"'
    if role in (PatchRole.ANCHOR, PatchRole.MERGED):
        group = groups.get(token, 0) % (len(COLOURS) * len(TEXTURES))
        return "dv-p dv-merged", f' fill="url(#{uid}-g{group})" data-fill="url(#{uid}-g{group})"'
    return "dv-p dv-kept", ' fill="transparent" data-fill="transparent"'


def _patterns(uid: str, number: int) -> str:
    """Fills that are told apart without colours: lines for what is dropped, textures for merged tokens."""
    if number:  # those of the first picture serve all of a view, but for colours that it does not have
        return ""
    box = f'width="{STEP}" height="{STEP}" patternUnits="userSpaceOnUse"'
    veil = f'<rect class="dv-veil" width="{STEP}" height="{STEP}"/>'
    made = [
        f'<pattern id="{uid}-v2v" {box}>{veil}<path class="dv-hatch" d="M0 10L10 0"/></pattern>',
        f'<pattern id="{uid}-t2v" {box}>{veil}<path class="dv-hatch" d="M0 0L10 10M0 10L10 0"/></pattern>',
    ]
    marks = {"plain": "", "dots": '<circle class="dv-texture" cx="5" cy="5" r="1.3"/>'}
    marks["lines"] = '<path class="dv-texture" d="M0 3H10M0 7H10"/>'
    for texture_number, texture in enumerate(TEXTURES):
        for colour_number, colour in enumerate(COLOURS):
            group = texture_number * len(COLOURS) + colour_number
            fill = f'<rect width="{STEP}" height="{STEP}" fill="{colour}" fill-opacity="0.72"/>'
            made.append(f'<pattern id="{uid}-g{group}" {box}>{fill}{marks[texture]}</pattern>')
    return f"<defs>{''.join(made)}</defs>"


def _legend(prompt: FollowedPrompt) -> str:
    """What the marks mean."""
    merges = any(role != PatchRole.DOMINANT for unit in prompt.units for role in unit.roles)
    keys = [("dv-key-kept", "a visual token of its own")]
    if merges:
        keys += [
            ("dv-key-merged", "merged: one colour and texture a token; the dot is the patch it is built around"),
            ("dv-key-v2v", "dropped behind the vision tower (V2V)"),
        ]
    if prompt.tokens > sum(len(set(unit.tokens) - {-1}) for unit in prompt.units):
        keys[0] = ("dv-key-kept", "a visual token of its own; some more show nothing: CLS, and ends of lines")
    if prompt.cuts:
        keys.append(("dv-key-t2v", "dropped by the question between layers (T2V)"))
    items = "".join(f'<li><span class="{look}" aria-hidden="true"></span>{escape(text)}</li>' for look, text in keys)
    scale = '<li class="dv-scale"><span aria-hidden="true"></span>attention: little to much</li>'
    return f'<ul class="dv-legend">{items}{scale}</ul>'


def _words(prompt: FollowedPrompt) -> str:
    """The end of the prompt with the words that voted marked."""
    if not prompt.words:
        return ""
    text = "".join(f"<mark>{escape(word)}</mark>" if voted else escape(word) for word, voted in _joined(prompt.words))
    voters = ", ".join(repr(word.strip() or word) for word, voted in prompt.words if voted) or "none"
    return (
        f'<p class="dv-words"><span class="dv-words-title">Words that vote on the patches: {escape(voters)}</span>'
        f'<span class="dv-prompt">{text}</span></p>'
    )


def _joined(words: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Words next to each other that do the same, as one text."""
    joined: list[tuple[str, bool]] = []
    for word, voted in words:
        if joined and joined[-1][1] == voted:
            joined[-1] = (joined[-1][0] + word, voted)
        else:
            joined.append((word, voted))
    return joined
