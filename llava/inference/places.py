"""Paths as users type them: with a tilde, in quotes, with escaped spaces, as file:// addresses, in lists."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

_QUOTES = {"'": "'", '"': '"', "“": "”", "‘": "’"}
_ESCAPED = re.compile(r"\\(.)")
_HERE = ("", "localhost")


def is_address(place: str) -> bool:
    """Whether a place is an http(s) address."""
    return place.lower().startswith(("http://", "https://"))


def is_missing(place: str) -> bool:
    """Whether there is nothing of that name, or cannot be; a link in a circle, say, is there, but cannot be read."""
    try:
        os.stat(place)
    except ValueError:
        return True
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    return False


def file_exists(place: str) -> bool:
    """Whether there is a file of that name; no name is too long or too odd to be asked about."""
    try:
        return Path(place).is_file()
    except (OSError, ValueError):
        return False


def typed_place(text: str) -> str:
    """A path or address out of what somebody typed, pasted or dragged into a terminal.

    A file that exists under the name as it stands is that file. Else: quotes around it and spaces outside of them go;
    `file://` addresses become paths, with their percent signs decoded; `~` and `~name` become home folders; backslashes
    and a shell's quotes within it go where that gives a file that exists.

    Args:
        text: text as typed.

    Raises:
        ValueError: if a `file://` address names another machine.
    """
    if file_exists(text):
        return text
    place = text.strip()
    if len(place) > 1 and _QUOTES.get(place[0]) == place[-1]:
        place = place[1:-1]
    if is_address(place) or file_exists(place):
        return place
    if place.lower().startswith("file:"):
        return _path_of(place)
    expanded = _expanded(place)
    readings = (expanded, _expanded(_ESCAPED.sub(r"\1", place)), _expanded(_as_in_a_shell(text)))
    return next(filter(file_exists, readings), expanded)


def image_files(names: str | Sequence[str] | None, sep: str) -> list[str]:
    """The paths and addresses in a list that `sep` joins, or in several such lists.

    A name that holds the separator itself is told by its file: of the pieces from left to right, as many as together
    name a file that exists are one. Pieces behind an address that name no file and are no address belong to it.

    Args:
        names: a list as text, several of them, or None for none.
        sep: between names; empty where each text is one name.
    """
    texts = [names] if isinstance(names, str) else list(names or ())
    return [place for text in texts if text.strip() for place in _split(text, sep)]


def _split(text: str, sep: str) -> list[str]:
    pieces = text.split(sep) if sep and not file_exists(typed_place(text)) else [text]
    places: list[str] = []
    while pieces:
        counts = range(len(pieces), 0, -1)
        count = next((n for n in counts if file_exists(typed_place(sep.join(pieces[:n])))), 1)
        place = sep.join(pieces[:count])
        known = is_address(place.strip()) or file_exists(typed_place(place))
        if places and is_address(places[-1]) and not known:
            places[-1] += sep + place
        elif file_exists(place):
            places.append(place)
        elif place.strip():
            places.append(place.strip())
        pieces = pieces[count:]
    return places


def _path_of(address: str) -> str:
    parts = urlsplit(address)
    if parts.netloc.lower() not in _HERE:
        raise ValueError(
            f"{address!r} names a file on the machine {parts.netloc!r}; give a path of this one, file:///path or "
            "file://localhost/path."
        )
    behind = address.partition(":")[2]
    path = behind.removeprefix(f"//{parts.netloc}")
    literal = unquote(path)  # "?" and "#" may stand in names; they are no part of an address here
    return url2pathname(path) if not file_exists(literal) else literal


def _as_in_a_shell(text: str) -> str:
    """The word that a shell would make of a text; the text itself where it would make none or several."""
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that does not end
        return text
    return words[0] if len(words) == 1 else text


def _expanded(place: str) -> str:
    try:
        return str(Path(place).expanduser()) if place.startswith("~") else place
    except RuntimeError:  # nobody of that name
        return place
