"""Data files of each benchmark: source, place in the evaluation folder, and number of questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llava.common.yaml_files import table_beside

EVAL_ZIP = "https://drive.google.com/file/d/1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy/view?usp=sharing"
_FROM_ZIP = "LLaVA's eval.zip, unpacked into the evaluation folder"


@dataclass(frozen=True)
class DatasetPart:
    """One file or folder that a benchmark needs.

    Attributes:
        places: relative to the evaluation folder; the first is the usual one, any will do.
        what: holds what.
        source: which download, and what to do with it.
        url: address of the download.
        optional: fewer questions are asked without it, but the paper's number does not need it.
    """

    places: tuple[str, ...]
    what: str
    source: str
    url: str
    optional: bool = False


@dataclass(frozen=True)
class Dataset:
    """What one benchmark needs.

    Attributes:
        parts: files and folders, the questions first.
        questions: how many there are; None where no number is published.
        within: only questions whose image lies in this folder count towards `questions`.
        licence: licence of the data, as its authors give it.
        notes: sentences that a user has to know.
        instead: parts that will do where the questions are missing, because a split with answers is read then.
        questions_instead: how many those are.
    """

    parts: tuple[DatasetPart, ...]
    questions: int | None
    within: str = ""
    licence: str = "see its site"
    notes: tuple[str, ...] = ()
    instead: tuple[DatasetPart, ...] = ()
    questions_instead: int | None = None


UNKNOWN = Dataset((), None, notes=("Its package does not say where the data comes from.",))
"""What is known of a benchmark that tells nothing else."""


def _parts(download: Mapping[str, Any]) -> Iterator[DatasetPart]:
    """The parts of one entry of `parts` in datasets.yaml."""
    archive, url = download.get("archive", ""), download.get("url", "")
    for name, what in download["files"].items():
        places = tuple(f"{folder}/{name}" for folder in download.get("folders", ())) or (name,)
        source = download.get("source") or ("the file itself" if url else _FROM_ZIP)
        if archive:
            source = f"{archive.rpartition('/')[2]}, unpacked into {places[0].rpartition('/')[0]}"
        yield DatasetPart(places, what, source, url or archive or EVAL_ZIP, download.get("optional", False))


def _dataset(fields: Mapping[str, Any]) -> Dataset:
    made: dict[str, Any] = {"questions": None, **fields, "notes": tuple(fields.get("notes", ()))}
    for key in ("parts", "instead"):
        made[key] = tuple(part for download in fields.get(key, ()) for part in _parts(download))
    return Dataset(**made)


DATASETS = {name: _dataset(fields) for name, fields in table_beside(__file__).items()}
"""What each benchmark needs, by its name."""
