"""A model's own chat template, cut into segments that say what each piece of the prompt is.

The template is a Jinja program that writes a conversation. It is run with a stand-in for each text, so that what it
writes around the texts is known, and once more with the texts themselves: both must agree, or it does something to
texts that cannot be followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llava.common.shown import shown
from llava.conversation import Segment, SegmentKind

Message = dict[str, Any]
Render = Callable[[list[Message], bool], str]
"""Messages, and whether an answer is asked for, to text."""

_STAND_IN = re.compile("\U000f0000([0-9]+)\U000f0001")
_ROLES = ("user", "assistant")


def template_segments(render: Render, turns: Sequence[str], system: str | None, ask: bool) -> list[Segment]:
    """A conversation in pieces; joined, they are what the template writes.

    An answer includes all that the template writes behind the last answer of a conversation (for ChatML the mark of its
    end and the line break).

    Args:
        render: runs the template.
        turns: texts, human and assistant alternating, the human first.
        system: text of the system; None for what the template says by itself.
        ask: whether the last turn is a question to be answered.

    Raises:
        ValueError: if the template refuses the conversation, leaves a text out or changes one.
    """
    if len(turns) % 2 != int(ask):
        expected = "a human turn to be answered" if ask else "an answer"
        raise ValueError(f"The conversation has {len(turns)} turns; it must end with {expected}.")
    texts = [*turns] if system is None else [system, *turns]
    roles = ["system"] * (system is not None) + [_ROLES[number % 2] for number in range(len(turns))]
    answered = [*roles, "assistant"] if ask else roles
    stand_ins = [f"\U000f0000{number}\U000f0001" for number in range(len(answered))]
    pieces = _STAND_IN.split(_rendered(render, answered, stand_ins, False))  # around the texts, and their numbers
    if pieces[1::2] != [str(number) for number in range(len(answered))]:
        raise ValueError("The chat template of the model leaves out or repeats texts of the conversation.")
    *around, end = pieces[::2]
    segments = [Segment(around[0], SegmentKind.SYSTEM)]
    for role, text, behind in zip(roles, texts, [*around[1:], *([] if ask else [end])], strict=True):
        segments += _pieces(role, text, behind, end)
    written = _rendered(render, roles, texts, ask)
    if ask:  # some templates write more or less in front of an answer that is to come than of one that is there
        before = "".join(segment.text for segment in segments[:-1])
        segments[-1] = replace(segments[-1], text=written.removeprefix(before))
    if "".join(segment.text for segment in segments) != written:
        raise ValueError(f"The chat template changes the texts of the conversation; it writes {shown(written, 300)}.")
    return [segment for segment in segments if segment.text]


def _pieces(role: str, text: str, behind: str, end: str) -> list[Segment]:
    """One text and what the template writes behind it; `end` is what it writes behind the last answer."""
    said = (0, len(text))
    match role:
        case "system":
            return [Segment(text + behind, SegmentKind.SYSTEM, said)]
        case "user":
            return [Segment(text, SegmentKind.QUESTION, said), Segment(behind, SegmentKind.ROLE)]
    if not behind.startswith(end):
        raise ValueError(
            f"The chat template writes {shown(behind)} behind an answer and {shown(end)} behind the last one, so where "
            "an answer ends cannot be told."
        )
    return [Segment(text + end, SegmentKind.ANSWER, said), Segment(behind[len(end) :], SegmentKind.ROLE)]


def _rendered(render: Render, roles: Sequence[str], texts: Sequence[str], ask: bool) -> str:
    from jinja2 import TemplateError

    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in zip(roles, texts, strict=True)
    ]
    try:
        return render(messages, ask)
    except TemplateError as error:
        raise ValueError(f"The chat template of the model refuses the conversation: {error}") from error
