"""Records of a JSON file as dataclasses, every field held against its annotation."""

from __future__ import annotations

import dataclasses
import math
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from llava.common.json_files import read_object
from llava.common.shown import shown

Record = TypeVar("Record")


def read_record(kind: type[Record], path: Path, advice: str) -> Record:
    """The dataclass that a JSON file holds.

    Args:
        kind: a dataclass whose annotations are plain types, lists, tuples, unions and dataclasses.
        path: path of the file.
        advice: what to do if it is not such, as a main clause.

    Raises:
        ValueError: if the file is not JSON or a field is missing, unknown or of another type; names file and field.
    """
    return record_of(kind, read_object(path, advice, strict=False), repr(str(path)), advice)


def record_of(kind: type[Record], value: Any, origin: str, advice: str) -> Record:
    """The dataclass that a value of a JSON file holds; `origin` names the file. Else as `read_record`."""
    try:
        return _record(kind, value, "")
    except TypeError as error:
        raise ValueError(f"{error} in {origin}; {advice}.") from error


def _record(kind: type[Any], value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{place or 'The file'} is {shown(value, 60)}, not an object,")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value.keys() - fields.keys():
        raise TypeError(f"{place or 'The file'} has a field {shown(name, 60)}, which is not known,")
    for name, field in fields.items():
        given = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in value and not given:
            raise TypeError(f"{place}{'.' if place else ''}{name} is missing")
    return kind(**{name: _value(hints[name], item, f"{place}.{name}".lstrip(".")) for name, item in value.items()})


def _value(kind: Any, value: Any, place: str) -> Any:
    """The value as its annotation has it.

    Raises:
        TypeError: if it is of another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for one in inner:
            try:
                return _value(one, value, place)
            except TypeError:
                continue
    elif origin is list and isinstance(value, list):
        return [_value(inner[0], item, f"{place}[{number}]") for number, item in enumerate(value)]
    elif origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is ... else list(inner)
        if len(kinds) == len(value):
            return tuple(
                _value(one, item, f"{place}[{i}]") for i, (one, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _record(kind, value, place)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return value
    elif kind is type(value) or (origin is dict and isinstance(value, dict)):
        return value
    name = kind.__name__ if isinstance(kind, type) and origin is None else kind
    raise TypeError(f"{place} is {shown(value, 60)}, not {str(name).replace('playground.quickstart.results.', '')},")
