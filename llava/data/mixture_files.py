"""The entries of a YAML mixture, of this project's kind (`sources`) and of LLaVA-NeXT's (`datasets`).

Keys of an entry: `path` (LLaVA-NeXT: `json_path`); `image_folder` and `video_folder` of its own; `weight`; `name` for
reports; `sampling_strategy`, the part of the file that is used:

- `all`, which is the default;
- `first:N`, `end:N`: so many records from the front or from the end; all where there are fewer;
- `random:N`: so many drawn by the seed, in the order of the file;
- with `N%` that share of the records, rounded up.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llava.common.shown import shown
from llava.common.yaml_files import read_yaml
from llava.data.json_stream import require_data_file
from llava.data.records import FAULTS_TO_SHOW

MIXTURE_SUFFIXES = (".yaml", ".yml")
MOST_WEIGHT = 10_000
"""Largest weight of a source: one epoch sees each of its records so often."""
ALL = "all"
_LISTS = {"sources": "path", "datasets": "json_path"}
"""Key of the list of entries, and what their paths are called in it."""
_SEED = "seed"
_ENTRY_KEYS = ("image_folder", "video_folder", "weight", "name", "sampling_strategy")
_PART = re.compile(r"(?P<from>first|end|random):(?P<number>[0-9]{1,12})(?P<share>%?)")

_SHARE = re.compile(r"(?P<path>.+)%(?P<number>[0-9]{1,12})")
_BRACES = re.compile(r"(?P<before>[^{}]*)\{(?P<names>[^{}]*,[^{}]*)\}(?P<after>[^{}]*)")


@dataclass(frozen=True)
class Source:
    """One file of a mixture.

    Attributes:
        path: in a format of `llava.data.json_stream`.
        image_folder: where its image names start; None for the folder of the command line.
        weight: how often an epoch sees a record of it.
        name: for reports; None for a file that stands alone.
        video_folder: where names of its videos start; None for the folder of the command line.
        part: share of its records, as a `sampling_strategy`.
        seed: seed of its draws; None for that of the mix.
    """

    path: Path
    image_folder: str | None = None
    weight: float = 1.0
    name: str | None = None
    video_folder: str | None = None
    part: str = ALL
    seed: int | None = None


def is_mixture(path: Path) -> bool:
    """Whether a file is a mixture, by the ending of its name."""
    return path.suffix.lower() in MIXTURE_SUFFIXES


def named_sources(paths: Sequence[str | Path]) -> list[Source]:
    """The sources that a command line names.

    Args:
        paths: data files and mixtures; also `{a,b}.json` for several files as LLaVA-NeXT writes them, and `a.json%50`
            for 50 % of a file, drawn at random, as Qwen does, unless there is a file of that very name.

    Raises:
        ValueError: as in `read_mixture`, or if nothing is named.
    """
    sources: list[Source] = []
    for path, part in (found for name in paths for found in _spelled_out(str(name))):
        if is_mixture(path):
            read, seed = read_mixture(path)
            sources += [replace(source, seed=seed) for source in read]
        else:
            sources.append(Source(path, part=part))
    if not sources:
        raise ValueError("No data file is named; check --data_path.")
    return sources


def _spelled_out(path: str) -> list[tuple[Path, str]]:
    """The files that a name stands for, and which part of them is used."""
    if os.path.lexists(path):
        return [(Path(path), ALL)]
    share = _SHARE.fullmatch(path)
    if share is not None:
        part = f"random:{share['number']}%"
        fault = (
            "a mixture has parts of its own; write them there" if is_mixture(Path(share["path"])) else _part_fault(part)
        )
        if fault is not None:
            raise ValueError(f"--data_path names {shown(path)}; {fault}.")
        return [(Path(share["path"]), part)]
    several = _BRACES.fullmatch(path)
    if several is None:
        return [(Path(path), ALL)]
    return [(Path(f"{several['before']}{name}{several['after']}"), ALL) for name in several["names"].split(",")]


def part_of(count: int, part: str, seed: int) -> NDArray[np.int64]:
    """Rows of a file of `count` records that a `sampling_strategy` uses, in the order of the file.

    Args:
        count: records of the file.
        part: checked by `read_mixture`.
        seed: seed of the draw of `random`.
    """
    rows = np.arange(count)
    match = _PART.fullmatch(part)
    if match is None:
        return rows
    number = int(match["number"])
    number = math.ceil(number * count / 100) if match["share"] else number
    match match["from"]:
        case "first":
            return rows[:number]
        case "end":
            return rows[max(count - number, 0) :]
        case _:
            drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:number]
            return drawn.sort().values.numpy()


def read_mixture(path: Path) -> tuple[list[Source], int]:
    """The sources of a YAML mixture and its seed.

    Raises:
        ValueError: if the file is missing or not YAML, for unknown keys, values of the wrong kind and missing
            data files; tells all that is wrong.
    """
    if not os.path.lexists(path):
        raise ValueError(f"There is no mixture {shown(str(path))}; check --data_path.")
    data = read_yaml(path)
    lists = [key for key in _LISTS if isinstance(data, dict) and data.get(key) is not None]
    if len(lists) == 2:
        raise ValueError(f"{path} has both 'sources' and 'datasets'; put all files under one of the two keys.")
    entries = data[lists[0]] if lists else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path} must hold a list under the key 'sources', each entry with a 'path', or LLaVA-NeXT's 'datasets', "
            "each with a 'json_path'."
        )
    path_key = _LISTS[lists[0]]
    seed = data.get(_SEED, 0)
    faults = _unknown_keys(data, (lists[0], _SEED), "The mixture")
    if type(seed) is not int or not 0 <= seed < 2**63:
        faults.append(f"The seed is {shown(seed)}; it must be a whole number from 0 up.")
    for number, entry in enumerate(entries):
        faults += _faults(entry, number, path.parent, path_key)
    if faults:
        listed = "\n  ".join(faults[:FAULTS_TO_SHOW])
        raise ValueError(f"{path} has {len(faults)} fault(s):\n  {listed}")
    return [_source(entry, path.parent, path_key) for entry in entries], seed


def _source(entry: dict[str, Any], folder: Path, path_key: str) -> Source:
    folders = {key: entry.get(key) for key in ("image_folder", "video_folder")}
    own = {key: None if value is None else str(folder / value) for key, value in folders.items()}
    return Source(
        path=_place(entry[path_key], folder, path_key),
        image_folder=own["image_folder"],
        weight=float(entry.get("weight", 1.0)),
        name=entry.get("name") or entry[path_key],
        video_folder=own["video_folder"],
        part=entry.get("sampling_strategy") or ALL,
    )


def _faults(entry: Any, number: int, folder: Path, path_key: str) -> list[str]:
    """All that is wrong with an entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get(path_key), str):
        return [f"Source {number} is {shown(entry)}; it must be a mapping with a {path_key!r}."]
    name, weight = f"Source {shown(entry[path_key])}", entry.get("weight", 1.0)
    faults = _unknown_keys(entry, (path_key, *_ENTRY_KEYS), name)
    if type(weight) not in (int, float) or not 0 <= weight <= MOST_WEIGHT:
        faults.append(f"{name} has the weight {shown(weight)}; it must be a number from 0 up, {MOST_WEIGHT:,} at most.")
    faults += [
        f"{name}: {key!r} is {shown(entry[key])}; it must be text."
        for key in ("image_folder", "video_folder", "name")
        if not isinstance(entry.get(key), str | None)
    ]
    fault = _part_fault(entry.get("sampling_strategy"))
    if fault is not None:
        faults.append(f"{name}: 'sampling_strategy' is {shown(entry['sampling_strategy'])}; {fault}.")
    try:
        place = _place(entry[path_key], folder, path_key)
        require_data_file(place, "paths start at the folder of the mixture")
    except ValueError as error:
        faults.append(str(error))
    return faults


def _place(name: str, folder: Path, path_key: str) -> Path:
    """Where a file of a mixture lies: from the mixture's folder, LLaVA-NeXT's also from the one that a run starts in.

    Raises:
        ValueError: if there is one in both, and they differ.
    """
    place = folder / name
    if path_key == _LISTS["sources"] or not os.path.exists(name) or os.path.isabs(name):
        return place
    if not os.path.exists(place):
        return Path(name)
    if not os.path.samefile(place, name):
        raise ValueError(
            f"Source {shown(name)} is a file beside the mixture and another in the folder that this starts in; write "
            "the whole path."
        )
    return place


def _part_fault(part: Any) -> str | None:
    """What is wrong with a `sampling_strategy`; None where nothing is."""
    if part is None or part == ALL:
        return None
    match = _PART.fullmatch(part) if isinstance(part, str) else None
    if match is None:
        return "it must be all, or first:N, end:N or random:N with a number of records or a share such as 10%"
    if int(match["number"]) == 0:
        return "it leaves no record; give 1 or more"
    if match["share"] and int(match["number"]) > 100:
        return "a file has no more than 100%"
    return None


def _unknown_keys(data: dict[Any, Any], known: Sequence[str], name: str) -> list[str]:
    return [
        f"{name} has the unknown key {shown(key)}; known are {', '.join(known)}." for key in data if key not in known
    ]
