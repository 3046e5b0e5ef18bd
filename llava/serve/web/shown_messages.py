"""Conversations and small pictures as HTML; all text is escaped, and pictures stand in the page as data."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from llava.common.shown import printable
from llava.data.frames import Frames
from llava.inference.chat import Shown

MOST_FRAMES = 8
"""Frames of a video that stand among small pictures."""
_SMALL = 160
_AS_PNG = 256
"""Pictures whose longer side is below are sent as PNG, others as JPEG."""


@dataclass(frozen=True)
class ChatMessage:
    """What somebody said.

    Attributes:
        from_user: whether it was the visitor.
        text: the words.
        pictures: small pictures that were shown with them, as HTML.
    """

    from_user: bool
    text: str
    pictures: str = ""

    @classmethod
    def question(cls, text: str, shown: Sequence[Shown]) -> ChatMessage:
        """A question with what is shown."""
        return cls(True, text, thumbnails(shown))

    def html(self) -> str:
        """The message as an item of a list."""
        look, who = ("dv-user", "You") if self.from_user else ("dv-model", "Model")
        text = escape(printable(self.text, lines=True))
        said = f'<span class="dv-who">{who}: </span>{self.pictures}<span class="dv-text">{text}</span>'
        return f'<li class="{look}">{said}</li>'


def conversation_html(messages: Sequence[ChatMessage]) -> str:
    """Messages in order."""
    if not messages:
        return '<p class="dv-hint">Choose a picture and ask.</p>'
    return f'<ol class="dv-chat">{"".join(message.html() for message in messages)}</ol>'


def waiting_html(shown: Sequence[Shown]) -> str:
    """The pictures that will be shown with the next question."""
    return thumbnails(shown) or '<p class="dv-hint">No picture waits for the next question.</p>'


def thumbnails(shown: Sequence[Shown]) -> str:
    """Small pictures in a row; of a video some of its frames."""
    items = []
    for number, one in enumerate(shown, 1):
        if isinstance(one, Frames):
            pictures = one.pictures[:: max(1, -(-len(one) // MOST_FRAMES))]
            items += [
                (f"video {number}, frame {place} of {len(pictures)}", frame) for place, frame in enumerate(pictures, 1)
            ]
        else:
            items.append((f"picture {number}, {one.width} by {one.height} pixels", one))
    drawn = "".join(
        f'<li><img alt="{escape(name)}" src="{data_address(picture, _SMALL)}"></li>' for name, picture in items
    )
    return f'<ul class="dv-thumbs">{drawn}</ul>' if items else ""


def data_address(picture: Image.Image, longest: int) -> str:
    """A picture as data, its longer side no longer than `longest` pixels."""
    small = picture.copy()
    small.thumbnail((longest, longest))
    kind = "PNG" if max(small.size) < _AS_PNG else "JPEG"
    file = io.BytesIO()
    small.save(file, format=kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
