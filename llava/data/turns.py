"""Reads the turns of a record, in either spelling of roles and keys, and its own system prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.common.shown import shown
from llava.data.media_keys import IMAGE_KEYS, VIDEO_KEYS, unread_media

TURN_KEYS = ("conversations", "messages")
_ROLES = {"human": "human", "user": "human", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_ACCEPTED = "'human' or 'user', 'gpt' or 'assistant', and 'system'"
_WEIGHTS = ("loss", "weight", "train", "training")
"""Whether, or how much, a single turn is trained, as ms-swift, OpenAI's files and axolotl have it."""


@dataclass(frozen=True)
class RecordTurns:
    """The conversation of a record.

    Attributes:
        turns: texts, human and assistant alternating, the human first.
        system: the record's system prompt; None for the template's.
        left_out: turns of an assistant before the first human one, which are not trained: 0 or 1.
    """

    turns: tuple[str, ...]
    system: str | None = None
    left_out: int = 0


@dataclass(frozen=True)
class _Turn:
    """A turn as the file has it: its number there, the role as it is spelt, what that means, and the text."""

    number: int
    spelling: str
    role: str
    text: str


def read_turns(data: Mapping[Any, Any], name: str) -> RecordTurns:
    """The conversation of a record.

    Turns are `{"from": "human" | "gpt", "value"}` under `conversations`, or `{"role": "user" | "assistant", "content"}`
    under `messages`; keys and spellings may be mixed. A first turn of the `system`, or a text under the key `system`,
    replaces the system prompt of the template unless it is empty. One turn of the assistant in front of all human ones
    is left out, as in LLaVA. A whole number is read as its digits. All answers are trained alike.

    Args:
        data: the record as parsed.
        name: name of the record, for errors.

    Raises:
        ValueError: if turns are missing or of the wrong kind, do not alternate, have an unknown role, no text, or name
            media; or if a turn, or the record by `system_prompt`, asks for something that is not done.
    """
    given = _list_of_turns(data, name)
    turns = [_turn(turn, number, name) for number, turn in enumerate(given)]
    said = next((turn.text for turn in turns[:1] if turn.role == "system"), None)
    spoken = turns[1:] if said is not None else turns
    left_out = int(bool(spoken) and spoken[0].role == "assistant")
    spoken = spoken[left_out:]
    if not spoken:
        raise ValueError(f"record {name!r} has no human turn.")
    _check_order(spoken, name)
    for turn in spoken:
        _check_weight(given[turn.number], turn, name)
    return RecordTurns(tuple(turn.text for turn in spoken), _system(data, said, name), left_out)


def _list_of_turns(data: Mapping[Any, Any], name: str) -> Sequence[Any]:
    given = [key for key in TURN_KEYS if data.get(key) is not None]
    if len(given) == 2:
        raise ValueError(f"record {name!r} has both 'conversations' and 'messages'; keep one of the two keys.")
    turns = data[given[0]] if given else None
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        key = given[0] if given else "conversations"
        raise ValueError(
            f"record {name!r}: {key!r} must be a list of turns, {{'from', 'value'}} or {{'role', 'content'}} mappings."
        )
    return turns


def _turn(turn: Mapping[Any, Any], number: int, name: str) -> _Turn:
    where = f"record {name!r}: turn {number}"
    spelling = _only(turn, ("from", "role"), where)
    role = _ROLES.get(spelling) if isinstance(spelling, str) else None
    if role is None:
        raise ValueError(f"{where} is from {shown(spelling)}; accepted are {_ACCEPTED}.")
    media = [key for key in IMAGE_KEYS + VIDEO_KEYS if turn.get(key)] + unread_media(turn, videos=())
    if media:
        raise ValueError(
            f"{where} names media under {shown(media[0])}, which is not read; name images under 'image' of the record, "
            "videos under 'video'."
        )
    return _Turn(number, spelling, role, _text(_only(turn, ("value", "content"), where), where))


def _only(turn: Mapping[Any, Any], keys: tuple[str, str], where: str) -> Any:
    """The value under one of two keys; None where there is none."""
    given = [turn[key] for key in keys if turn.get(key) is not None]
    if len(given) == 2:
        raise ValueError(f"{where} has both {keys[0]!r} and {keys[1]!r}; keep one of the two keys.")
    return given[0] if given else None


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise ValueError(f"{where} has no text.")
    if isinstance(value, list | tuple | Mapping):
        raise ValueError(f"{where} is made of parts; write one text, with <image> where an image goes.")
    raise ValueError(f"{where} is {shown(value)}, which is no text; write it between quotation marks.")


def _check_order(spoken: Sequence[_Turn], name: str) -> None:
    former = None
    for place, turn in enumerate(spoken):
        where = f"record {name!r}: turn {turn.number} is from {shown(turn.spelling)}"
        if turn.role == "system":
            raise ValueError(f"{where}; the system speaks once, and first.")
        if turn.role != ("human", "assistant")[place % 2]:
            before = f"so is turn {former.number} ({shown(former.spelling)})" if former else "the human must come first"
            raise ValueError(f"{where}, and {before}; human and assistant take turns.")
        former = turn


def _check_weight(given: Mapping[Any, Any], turn: _Turn, name: str) -> None:
    """Raise ValueError where a turn says that it is to be trained otherwise than it is: answers by 1, others by 0."""
    weight = int(turn.role == "assistant")
    for key in _WEIGHTS:
        if given.get(key) not in (None, weight):
            raise ValueError(
                f"record {name!r}: turn {turn.number} has {key!r}: {shown(given[key])}, which is not heeded: every "
                "answer is trained, all alike, and nothing else is; leave the key out if that is meant."
            )


def _system(data: Mapping[Any, Any], said: str | None, name: str) -> str | None:
    """The row's system prompt, from its first turn or the key beside the turns."""
    beside = data.get("system")
    if not isinstance(beside, str | None):
        raise ValueError(f"record {name!r}: 'system' is {shown(beside)}; it must be text.")
    if said and beside and said != beside:
        raise ValueError(f"record {name!r} has a system turn and another text under 'system'; keep one of the two.")
    system = said or beside or None
    if data.get("system_prompt") not in (None, "", system):
        raise ValueError(f"record {name!r} has 'system_prompt', which is not read; name it 'system'.")
    return system
