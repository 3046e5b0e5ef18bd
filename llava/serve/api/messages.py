"""The conversation of a request: system prompt and turns, each in parts that are texts, images or videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.common.shown import shown
from llava.inference.question_text import check_question, fault_in
from llava.serve.api.failures import refused

_SYSTEM, _USER, _ASSISTANT = ("system", "developer"), "user", "assistant"
_EMPTY_OF_ANSWERS = ("refusal", "annotations", "audio", "function_call", "tool_calls")
"""Fields of an answer that clients send back with it; they hold nothing here."""
_MEDIA = {"image_url": "image", "video_url": "video"}
_PARTS = ("text", *_MEDIA)


@dataclass(frozen=True)
class SentMedium:
    """An image or a video of a message.

    Attributes:
        kind: `image` or `video`.
        url: data URL, or address.
        field: where it stands in the request.
    """

    kind: str
    url: str
    field: str


Part = str | SentMedium


@dataclass(frozen=True)
class SentConversation:
    """What a request asks about.

    Attributes:
        system: system prompt; None for that of the model's template.
        turns: parts of each turn, people's and the model's alternating, ending with a question.
    """

    system: str | None
    turns: tuple[tuple[Part, ...], ...]

    @property
    def media(self) -> list[SentMedium]:
        """All images and videos, in order."""
        return [part for turn in self.turns for part in turn if isinstance(part, SentMedium)]

    @property
    def characters(self) -> int:
        """Characters of all texts together."""
        texts = [part for turn in self.turns for part in turn if isinstance(part, str)]
        return len(self.system or "") + sum(map(len, texts))


def read_messages(value: Any) -> SentConversation:
    """The conversation of the field `messages`.

    Raises:
        ApiError: names the message that does not fit.
    """
    if not isinstance(value, list) or not value:
        raise refused(f"messages is {shown(value)}; it must be a list with at least one message.", "messages")
    messages = [_Message.read(message, f"messages[{number}]") for number, message in enumerate(value)]
    first = next((n for n, message in enumerate(messages) if message.role not in _SYSTEM), len(messages))
    system = "\n".join(message.text for message in messages[:first]) if first else None
    turns = messages[first:]
    for number, message in enumerate(turns):
        expected = _ASSISTANT if number % 2 else _USER
        if message.role != expected:
            raise refused(
                f"{message.field}.role is {message.role!r} where {expected!r} must stand: after those of the system, "
                "messages of user and assistant take turns, beginning with the user.",
                f"{message.field}.role",
            )
    if len(turns) % 2 == 0:
        raise refused("messages must end with one of role 'user', which is answered.", "messages")
    return SentConversation(system, tuple(message.parts for message in turns))


@dataclass(frozen=True)
class _Message:
    role: str
    parts: tuple[Part, ...]
    field: str

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @classmethod
    def read(cls, value: Any, field: str) -> _Message:
        if not isinstance(value, Mapping):
            raise refused(f"{field} is {shown(value)}; it must be an object with role and content.", field)
        role = value.get("role")
        if role not in (*_SYSTEM, _USER, _ASSISTANT):
            accepted = ", ".join((*_SYSTEM, _USER, _ASSISTANT))
            raise refused(f"{field}.role is {shown(role)}; accepted are {accepted}.", f"{field}.role")
        known = ("role", "content", *(_EMPTY_OF_ANSWERS if role == _ASSISTANT else ()))
        for name, content in value.items():
            empty = name in _EMPTY_OF_ANSWERS and content in (None, [])
            if name not in known or (name in _EMPTY_OF_ANSWERS and not empty):
                raise refused(f"{field}.{_name(name)} is not supported here; leave it out.", f"{field}.{_name(name)}")
        parts = _parts(value.get("content"), f"{field}.content", role == _USER)
        message = cls(role, parts, field)
        _check_text(message)
        return message


def _check_text(message: _Message) -> None:
    what = f"{message.field}.content"
    if message.role == _USER:
        try:
            check_question(message.text, what)
        except ValueError as error:
            raise refused(str(error), what) from error
        return
    fault = fault_in(message.text)
    if fault is not None:
        raise refused(f"{what} {fault}.", what)


def _parts(value: Any, field: str, with_media: bool) -> tuple[Part, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or not value:
        raise refused(f"{field} is {shown(value)}; it must be text, or a list of parts.", field)
    return tuple(_part(part, f"{field}[{number}]", with_media) for number, part in enumerate(value))


def _part(value: Any, field: str, with_media: bool) -> Part:
    kind = value.get("type") if isinstance(value, Mapping) else None
    accepted = _PARTS if with_media else ("text",)
    if not isinstance(value, Mapping) or kind not in accepted:
        raise refused(
            f"{field} is {shown(value if kind is None else kind)}; it must be a part of one of the types "
            f"{', '.join(accepted)}, such as {{'type': 'text', 'text': 'Hello'}}.",
            field,
        )
    unknown = sorted(set(value) - {"type", kind}, key=str)
    if unknown:
        raise refused(f"{field}.{_name(unknown[0])} is not supported here; leave it out.", field)
    content = value.get(kind)
    if kind == "text":
        if not isinstance(content, str):
            raise refused(f"{field}.text is {shown(content)}; it must be text.", f"{field}.text")
        return content
    return _medium(content, kind, f"{field}.{kind}")


def _medium(value: Any, kind: str, field: str) -> SentMedium:
    url = value.get("url") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(url, str):
        raise refused(f"{field} must be an object with a text url: a data URL such as data:image/png;base64,...", field)
    detail = value.get("detail")
    if detail not in (None, "auto"):
        raise refused(
            f"{field}.detail is {shown(detail)}; accepted is 'auto'. How many tokens an image takes is chosen with the "
            "field compression.",
            f"{field}.detail",
        )
    unknown = sorted(set(value) - {"url", "detail"}, key=str)
    if unknown:
        raise refused(f"{field}.{_name(unknown[0])} is not supported here; leave it out.", field)
    return SentMedium(_MEDIA[kind], url, field)


def _name(name: object) -> str:
    """Name of a field that a client sent, short enough for a message."""
    return shown(name)[1:-1] if isinstance(name, str) else shown(name)
