"""Reading JSON from outside: whatever is wrong with it becomes a sentence that names the file and what to do.

`json.loads` alone takes the last of two equal keys and numbers that are not finite, and raises three kinds of errors.
Here keys that come twice and such numbers are refused: nobody knows which of two values was meant, and other programs
read such a file otherwise or not at all.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from llava.common.atomic_write import write_whole
from llava.common.outside_files import decode_text, read_bytes
from llava.common.shown import LONGEST, shown

DEEPEST = 100
"""Nested lists and objects that are read: deeper ones make Python's own functions fail later on."""
LARGEST_SETTINGS = 64 << 20
"""Bytes of the largest file of settings or results that is read whole."""
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair, alone
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


class NotJsonError(ValueError):
    """A text is not JSON, or not such as is accepted; the message is the reason, as a main clause without an end."""


class AmbiguousJsonError(NotJsonError):
    """A key comes twice in an object, or a number is not finite: other programs would read something else."""


def parse_json(text: str | bytes, strict: bool = False, lenient: bool = False) -> Any:
    """The value of a JSON text, in which no object holds a key twice and all numbers are finite.

    Args:
        text: UTF-8 if it is bytes; a byte order mark is left out.
        strict: whether to refuse halves of surrogate pairs, too.
        lenient: whether to take what `json.loads` takes: the last of equal keys, NaN and Infinity. For what a server
            replies, which nobody can mend.

    Raises:
        AmbiguousJsonError: if a key comes twice in an object, or a number is not finite.
        NotJsonError: if it is no JSON, or is nested deeper than 100 lists and objects.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise NotJsonError(f"it is not UTF-8: byte 0x{error.object[error.start]:02x}") from error
    text = text.removeprefix("\ufeff")
    try:
        value = (_LENIENT if lenient else _EXACT).decode(text)
    except _NotFiniteError as error:
        raise AmbiguousJsonError(f"{error}{_place_of_not_finite(text)}") from error
    except NotJsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJsonError("it is empty" if not text.strip() else why_not_json(error)) from error
    if text.count("[") + text.count("{") > DEEPEST:
        require_shallow(value)
    if strict and "\\u" in text and _is_half(json.dumps(value, ensure_ascii=False)):
        raise NotJsonError(f"it holds half of a surrogate pair, which is no character{_at(value, _is_half, True)}")
    return value


def decode_at(text: str, start: int, lenient: bool = False) -> tuple[Any, int]:
    """The JSON value that begins at a place of a text, and where it ends.

    Args:
        text: may end in the middle of the value.
        start: place of its first character.
        lenient: as in `parse_json`.

    Raises:
        json.JSONDecodeError: if there is none.
        AmbiguousJsonError: as `parse_json`.
        Exception: others of `json.loads`; `why_not_json` says what they mean.
    """
    return (_LENIENT if lenient else _EXACT).raw_decode(text, start)


def why_not_json(error: Exception, placed: bool = True) -> str:
    """What an error of Python's JSON reader says about the text, as a main clause without an end.

    Args:
        error: a ValueError or RecursionError.
        placed: whether line and column are told; they are wrong where only a piece of a text was read.
    """
    if isinstance(error, json.JSONDecodeError):
        return str(error) if placed else error.msg
    if isinstance(error, RecursionError):
        return f"it is nested more than {DEEPEST} deep"
    if isinstance(error, NotJsonError):
        return str(error)
    return "it holds a number with too many digits"  # more than Python converts


def require_shallow(value: Any) -> None:
    """Refuse lists and objects that are nested so deep that Python's own functions would fail on them.

    Raises:
        NotJsonError: if they are nested more than 100 deep.
    """
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for item in level:
            inner += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if not inner:
            return
        level = inner
    raise NotJsonError(f"it is nested more than {DEEPEST} deep")


def read_json(path: str | Path, advice: str, strict: bool = True, mark: bool = True) -> Any:
    """The value in a JSON file.

    Args:
        path: path of the file.
        advice: what to do if it is not JSON, as a main clause.
        strict: as in `parse_json`.
        mark: whether a byte order mark may stand in front; libraries that read the file, too, take none.

    Raises:
        ValueError: if it cannot be read or is not JSON; names the file and ends with the advice.
    """
    content = read_bytes(path, LARGEST_SETTINGS)
    if not mark and content.startswith(codecs.BOM_UTF8):
        raise ValueError(f"{str(path)!r} begins with a byte order mark, which no library takes; save it without.")
    text = decode_text(content, str(path))
    try:
        return parse_json(text, strict)
    except NotJsonError as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}); {advice}.") from error


def read_object(path: str | Path, advice: str, strict: bool = True, mark: bool = True) -> dict[str, Any]:
    """The object in a JSON file. Arguments as in `read_json`.

    Raises:
        ValueError: as `read_json`, and if the file holds anything but an object.
    """
    value = read_json(path, advice, strict, mark)
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} holds {shown(value, 60)}; it must hold a JSON object: {advice}.")
    return value


def write_json(path: Path, value: Any, indent: int | None = None, end: str = "\n") -> Path:
    """Write a JSON file in one step; its folder is made if need be.

    Args:
        path: path of the file.
        value: that JSON can express.
        indent: as in `json.dumps`.
        end: ending of the file; "" as `json.dump` leaves it, for files that others write so.

    Returns:
        the path.

    Raises:
        llava.common.atomic_write.UnwritableError: if it cannot be written; what was there before stays.
    """
    return write_whole(path, json.dumps(value, indent=indent) + end)


def as_json(value: Any, longest: int = LONGEST) -> str:
    """A value of a JSON file as that writes it, cut behind `longest` characters."""
    text = ""
    for piece in json.JSONEncoder().iterencode(value):
        text += piece[: longest + 1]
        if len(text) > longest:
            return f"{text[: longest - 3]}..."
    return text


def need(values: Mapping[str, Any], key: str, kind: type | tuple[type, ...], place: str, optional: bool = False) -> Any:
    """A value of an object, of the type that is expected.

    Args:
        values: the object.
        key: key of the value.
        kind: accepted types; `float` takes whole numbers too, and no kind takes true and false but `bool`.
        place: file, and path of the object in it, such as `"'model/config.json': mm_vision_config"`.
        optional: whether the key may be missing or null; None stands for it.

    Raises:
        ValueError: if it is missing or of another type; names place, key, value and what is accepted.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    value = values.get(key)
    if optional and value is None:
        return None
    taken = (*kinds, int) if float in kinds else kinds
    if isinstance(value, taken) and (bool in kinds or not isinstance(value, bool)):
        return value
    expected = " or ".join(_WORDS[one] for one in kinds)
    said = f"is {shown(value)}" if key in values else "is missing"
    raise ValueError(f"{key} in {place} {said}; it must be {expected}{' or null' if optional else ''}.")


class _NotFiniteError(AmbiguousJsonError):
    """A number is not finite; the message says which."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        reason = f"the key {shown(key)} comes twice in one object, {shown(found, 80)}; leave one of them"
        raise AmbiguousJsonError(reason)
    return found


def _refuse_constant(name: str) -> Any:
    raise _NotFiniteError(f"it holds {name}, which is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _NotFiniteError(f"it holds {shown(text)}, which is too large a number")
    return number


_LENIENT = json.JSONDecoder()
_EXACT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _place_of_not_finite(text: str) -> str:
    try:
        return _at(_LENIENT.decode(text), _is_not_finite)
    except (ValueError, RecursionError):  # another fault further on
        return ""


def _is_half(value: Any) -> bool:
    return isinstance(value, str) and _HALF.search(value) is not None


def _at(value: Any, is_meant: Callable[[Any], bool], with_value: bool = False) -> str:
    """Where the first value (or key) that is meant stands, such as ", at 'conversations[0].value'"; "" at the top.

    Args:
        value: value to look through.
        is_meant: whether a value or key is meant.
        with_value: whether to say it, too.
    """
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        path, item = left.pop()
        if is_meant(item):
            return (f", at {shown(path)}" if path else "") + (f": {shown(item, 60)}" if with_value else "")
        inner: Iterable[tuple[str, Any]] = ()
        if isinstance(item, dict):
            inner = ((f"{path}.{key}" if path else key, (key if is_meant(key) else each)) for key, each in item.items())
        elif isinstance(item, list):
            inner = ((f"{path}[{number}]", each) for number, each in enumerate(item))
        left += reversed(list(inner))
    return ""
