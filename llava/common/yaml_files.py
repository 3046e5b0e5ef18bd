"""Reads YAML strictly: values that YAML 1.1 and 1.2 read differently are refused in a sentence.

YAML 1.1, which PyYAML reads, makes 192 of `0300`, 750 of `12:30`, text of `1e3` and a date of `2026-01-31`; YAML 1.2
reads some of these otherwise. A plain value on which the two differ is refused, and so are keys that come twice (PyYAML
takes the last), keys that are not text, tags, merges (`<<`) and more than one document. Values are made from the
parser's events one by one, so neither depth nor aliases can take more than a fixed amount of work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llava.common.outside_files import read_text
from llava.common.shown import shown

DEEPEST = 20
"""Nested lists and mappings of a file; a configuration has four."""
MOST_VALUES = 100_000
"""Keys and values of a file, those behind an alias counted as often as it is used."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C ten times as fast; only its events are used
_NULL = ("", "~", "null", "Null", "NULL")
# Booleans of YAML 1.1, as PyYAML reads them: no value here is one, so each is refused where it stands.
_BOOLEANS = {
    spelling: value
    for words, value in (("true yes on", True), ("false no off", False))
    for word in words.split()
    for spelling in (word, word.capitalize(), word.upper())
}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)?\.[0-9]*([eE][-+][0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_HAS_DIGIT = re.compile(r"[-+]?\.?[0-9]")
# What one of YAML 1.1 and 1.2, or PyYAML, takes for something other than text, or than it looks like.
_AMBIGUOUS = (
    (re.compile(r"[-+]?0[0-9_]+"), "YAML 1.1 reads it as an octal number; leave out the 0 in front"),
    (re.compile(r"[-+]?0[xXoObB][0-9a-fA-F_]+"), "it is not a decimal number; write one"),
    (re.compile(r"[-+]?[0-9][0-9_]*_[0-9_.]*"), "YAML 1.1 ignores underscores; leave them out"),
    (re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9_]*)?"), "YAML 1.1 reads it to the base 60; write that number"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt\s].*)?"), "YAML 1.1 reads it as a date; change it"),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+"), "YAML 1.1 reads it as text; write it as 1.0e+3"),
    (re.compile(r"[-+]?[0-9]+"), "it has more than 100 digits; give a smaller number"),
    (re.compile(r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?"), "it begins with a 0 too many; leave that out"),
    (re.compile(r"<<"), "YAML 1.1 merges mappings by it, which is not supported; write the keys out"),
    (re.compile(r"="), "YAML 1.1 gives it a meaning of its own; change it"),
)


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file: lists, mappings with keys of text, text, numbers, booleans and None.

    Args:
        path: path of the file.

    Raises:
        ValueError: if it cannot be read, is not YAML, holds nothing, or holds something that reads otherwise than it
            looks; names the file, and the line where there is one.
    """
    return parse_yaml(read_text(path), str(path))


def table_beside(module_file: str) -> Any:
    """The value in the YAML file beside a module that has its name; the module gives its `__file__`."""
    return read_yaml(Path(module_file).with_suffix(".yaml"))


def by_name(reasons: Mapping[str, list[str]]) -> dict[str, str]:
    """Names with their reasons, from reasons with all their names."""
    return {name: reason for reason, names in reasons.items() for name in names}


def parse_yaml(text: str, origin: str) -> Any:
    """The value that a YAML text holds.

    Args:
        text: one document.
        origin: name of the file or flag, for errors.

    Raises:
        ValueError: as `read_yaml`.
    """
    building = _Building()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            building.take(event)
    except yaml.YAMLError as error:
        raise ValueError(f"{origin} is not valid YAML: {_said(error)}.") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{origin} holds half of a surrogate pair; write the whole character.") from error
    except _RefusedError as error:
        raise ValueError(f"{origin}, line {error.line}: {error}") from error
    if not building.documents:
        raise ValueError(f"{origin} is empty; it must hold a YAML document.")
    return building.value


class _RefusedError(Exception):
    """A sentence about something in a line, counted from 1."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = line


@dataclass
class _Open:
    """A list or mapping that is being read.

    Attributes:
        value: what has been read of it.
        anchor: its name, if it has one.
        count: values in it, aliases expanded.
        key: key of the value that comes next, in a mapping; None if a key comes next.
        lines: lines of the keys, in a mapping.
    """

    value: Any
    anchor: str | None
    count: int = 1
    key: str | None = None
    lines: dict[str, int] = field(default_factory=dict)


class _Building:
    """The value of a document, built from the events of the parser."""

    def __init__(self) -> None:
        self.documents = 0
        self.value: Any = None
        self.open: list[_Open] = []
        self.known: dict[str, tuple[Any, int]] = {}

    def take(self, event: Any) -> None:
        """Add an event.

        Raises:
            _RefusedError: if it stands for something that is not read.
        """
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise _RefusedError(line, "a second YAML document begins; leave one of them.")
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._begin(event, line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            done = self.open.pop()
            self._put(done.value, done.count, done.anchor, line)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.known:
                raise _RefusedError(line, f"the alias *{event.anchor} names nothing that ended before it.")
            self._put(*self.known[event.anchor], None, line)
        elif isinstance(event, yaml.ScalarEvent):
            self._put(_scalar(event, line), 1, event.anchor, line)

    def _begin(self, event: Any, line: int) -> None:
        if event.tag is not None:
            raise _RefusedError(line, f"the tag {shown(event.tag)} is not read; leave it out.")
        if len(self.open) >= DEEPEST:
            raise _RefusedError(line, f"lists and mappings are nested more than {DEEPEST} deep; give fewer levels.")
        if self.open and isinstance(self.open[-1].value, dict) and self.open[-1].key is None:
            raise _RefusedError(line, "a list or mapping stands where a key is expected; a key must be text.")
        self.open.append(_Open({} if isinstance(event, yaml.MappingStartEvent) else [], event.anchor))

    def _put(self, value: Any, count: int, anchor: str | None, line: int) -> None:
        if anchor is not None:
            self.known[anchor] = (value, count)
        if not self.open:
            self.value = value
            return
        holder = self.open[-1]
        holder.count += count
        if holder.count > MOST_VALUES:
            raise _RefusedError(line, f"there are more than {MOST_VALUES:,} values, those behind aliases included.")
        if isinstance(holder.value, list):
            holder.value.append(value)
        elif holder.key is None:
            if not isinstance(value, str):
                raise _RefusedError(line, f"the key {shown(value)} is no text; put it into quotation marks if it is.")
            if value in holder.lines:
                where = holder.lines[value]
                raise _RefusedError(line, f"the key {shown(value)} came in line {where} already; leave one of the two.")
            holder.key, holder.lines[value] = value, line
        else:
            holder.value[holder.key] = value
            holder.key = None


def _scalar(event: Any, line: int) -> Any:
    """The value of a scalar: what both YAML 1.1 and 1.2 take it for.

    Raises:
        _RefusedError: if they differ, or it has a tag.
    """
    text = event.value
    if event.tag is not None:
        raise _RefusedError(line, f"the tag {shown(event.tag)} is not read; leave it out.")
    if event.style:  # quoted, or a block of text; plain is None, or "" from the parser in C
        return text
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text) and _HAS_DIGIT.match(text):
        number = float(text)
        if not math.isfinite(number):
            raise _RefusedError(line, f"{shown(text)} is too large a number; give a smaller one.")
        return number
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    for pattern, reason in _AMBIGUOUS:
        if pattern.fullmatch(text):
            raise _RefusedError(
                line, f"{shown(text)} is ambiguous: {reason}, or put it into quotation marks if it is text."
            )
    return text


def _said(error: yaml.YAMLError) -> str:
    """Where the text stops being YAML, and why, in one line."""
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    advice = "; indent with spaces" if "cannot start any token" in str(problem) else ""
    return f"{place}{' '.join(str(problem).split())}{advice}"
