"""Damage to files of text, JSON and YAML: what editors, disks, other programs and malice leave behind."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    10**30,
    -(2**63),
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    " ",
    "\x00",
    "\ud800",
    "<image>",
    "../../etc/passwd",
    "/",
    "0300",
    "1e3",
    "x" * 5000,
    [],
    [[]],
    [None],
    ["x"],
    [1, "a"],
    {},
    {"a": 1},
    {"": None},
    {"v2v": 3},
    [[[[[[[[[[1]]]]]]]]]],
)
PLAIN = (
    "0300",
    "1_000",
    "0x1F",
    "12:30",
    "1e3",
    "2026-01-31",
    "yes",
    "off",
    ".inf",
    ".nan",
    "~",
    "!!python/name:os.system",
    "!!int 7",
    "&a [*a]",
    "*nothing",
    "<<",
    "[",
    "{",
    "\t",
    "---",
    "|",
    "'",
    '"',
    "@",
    "%",
    "- -",
    "? [a]",
    "1: 2: 3",
)


def mutate(content: bytes, kind: str, draw: random.Random) -> bytes:
    """A damaged version of a file.

    Args:
        content: of the whole file.
        kind: `json`, `lines` (JSON lines), `yaml` or `text`.
        draw: decides.
    """
    if draw.random() < 0.3 or kind == "text":
        return _of_bytes(content, draw)
    if kind == "yaml":
        return _of_yaml(content, draw)
    if kind == "lines":
        lines = content.decode().splitlines()
        place = draw.randrange(len(lines))
        lines[place] = _of_json(lines[place], draw)
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    return _of_json(content.decode(), draw).encode("utf-8", "surrogatepass")


def _of_json(text: str, draw: random.Random) -> str:
    value = json.loads(text)
    for _ in range(draw.choice((1, 1, 1, 2))):
        value = _changed(value, draw)
    written = json.dumps(value, indent=draw.choice((None, 2)) if "\n" in text else None)
    if draw.random() < 0.1 and isinstance(value, dict) and value:
        key = draw.choice(list(value))
        written = written.rstrip()[:-1] + f", {json.dumps(key)}: {json.dumps(draw.choice(JUNK))}}}"
    return written


def _changed(value: Any, draw: random.Random) -> Any:
    """A value with one place in it replaced, removed or doubled."""
    value = copy.deepcopy(value)
    path: list[Any] = []
    here = value
    while isinstance(here, dict | list) and here and (not path or draw.random() < 0.75):
        key = draw.choice(list(here)) if isinstance(here, dict) else draw.randrange(len(here))
        path.append(key)
        here = here[key]
    if not path:
        return draw.choice(JUNK)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    action = draw.random()
    if action < 0.2:
        del holder[path[-1]]
    elif action < 0.25 and isinstance(holder, list):
        holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
    elif action < 0.3 and isinstance(holder, dict):
        holder[draw.choice(("extra", "", "\ud800", path[-1] + "s"))] = draw.choice(JUNK)
    else:
        holder[path[-1]] = copy.deepcopy(draw.choice(JUNK))
    return value


def _of_yaml(content: bytes, draw: random.Random) -> bytes:
    lines = content.decode().splitlines()
    place = draw.randrange(len(lines))
    line, action = lines[place], draw.random()
    if action < 0.5 and ":" in line:
        key = line.split(":", 1)[0]
        lines[place] = f"{key}: {draw.choice(PLAIN) if draw.random() < 0.6 else json.dumps(draw.choice(JUNK))}"
    elif action < 0.65:
        lines.insert(place, line)
    elif action < 0.8:
        lines.insert(place, draw.choice(PLAIN))
    elif action < 0.9:
        del lines[place]
    else:
        lines[place] = line.replace(" ", "\t", 1)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _of_bytes(content: bytes, draw: random.Random) -> bytes:
    """Damage that knows nothing of the format."""
    place = draw.randrange(len(content) + 1)
    bit = bytes([1 << draw.randrange(8)])
    changed = bytes([content[min(place, len(content) - 1)] ^ bit[0]]) if content else bit
    return draw.choice(
        (
            content[:place],
            content[:place] + changed + content[place + 1 :],
            content[:place] + draw.randbytes(draw.randrange(1, 9)) + content[place:],
            content[:place] + content[place + draw.randrange(1, 30) :],
            content[:place] + bytes(draw.randrange(1, 600)) + content[place:],
            content.decode("utf-8", "replace").encode("utf-16"),
            b"\xef\xbb\xbf" + content,
            content + content,
            b"",
            b"\n",
            b"[" * 50_000,
            b'{"a": ' * 50_000,
            b"9" * 6000,
            content.replace(b"\n", b"\r\n"),
            content.replace(b'"', b"'", 1),
            content + b"\xff\xfe",
        )
    )
