"""Runs a data check: conversations first, then every image and video once, then the findings of each record."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from llava.data.check.check_settings import CheckSettings
from llava.data.check.conversations import check_conversations, identity
from llava.data.check.findings import Finding, TextOutcome
from llava.data.check.image_files import check_images
from llava.data.check.sources import DataFile
from llava.data.check.videos import check_videos
from llava.data.check.worker_pool import WorkerPool, chunks_of
from llava.data.mixture_files import part_of

RECORDS_PER_CHUNK = 128
IMAGES_PER_CHUNK = 16
VIDEOS_PER_CHUNK = 2

Item = TypeVar("Item")
Result = TypeVar("Result")
FileKey = tuple[str, str, str]  # kind of medium, its folder, and name


@dataclass
class CheckResult:
    """What was found, by record in the order of the files (n records, b budgets).

    Attributes:
        sources: the data files.
        settings: how records were judged.
        ids: ids of the records; None where a record has none.
        num_words: int [n], the trainer's measure of length.
        num_images, num_videos: int [n], images and videos that a record names.
        text, images, videos, visual: int [n, b], left after cutting: text tokens, media, and their tokens.
        truncated, supervised: bool [n, b], whether something was cut off, and whether a label is left.
        encoded: bool [n], whether the record could be encoded at all.
        findings: findings of the records that have any, by index.
        distinct_images, distinct_videos: files that were looked at; each once, however many records name it.
        seconds: that checking took, reading the data files not included.
    """

    sources: list[DataFile]
    settings: CheckSettings
    ids: list[str | None]
    num_words: NDArray[np.int64]
    num_images: NDArray[np.int64]
    num_videos: NDArray[np.int64]
    text: NDArray[np.int64]
    images: NDArray[np.int64]
    videos: NDArray[np.int64]
    visual: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    supervised: NDArray[np.bool_]
    encoded: NDArray[np.bool_]
    findings: dict[int, list[Finding]] = field(default_factory=dict)
    distinct_images: int = 0
    distinct_videos: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, sources: list[DataFile], settings: CheckSettings) -> CheckResult:
        """A result in which nothing has been filled in yet."""
        count = sum(len(source.objects) for source in sources)
        shape = (count, len(settings.budgets))
        return cls(
            sources,
            settings,
            [None] * count,
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, bool),
            np.zeros(shape, bool),
            np.zeros(count, bool),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def faulty(self) -> list[int]:
        """Indices of the records with an error."""
        return [i for i, found in sorted(self.findings.items()) if any(finding.is_error for finding in found)]

    @property
    def good(self) -> NDArray[np.int64]:
        """Indices of the records without an error."""
        keep = np.ones(len(self), bool)
        keep[self.faulty] = False
        return np.flatnonzero(keep)

    def place(self, index: int) -> tuple[DataFile, int]:
        """The data file of a record, and the record's number in it."""
        for source in self.sources:
            if index < len(source.objects):
                return source, index
            index -= len(source.objects)
        raise IndexError("There are fewer records.")

    def good_objects(self) -> Iterator[Any]:
        """The good records as they stand in the files, in order."""
        objects = (data for source in self.sources for data in source.objects)
        left_out = set(self.faulty)
        return (data for index, data in enumerate(objects) if index not in left_out)

    def add(self, index: int, finding: Finding) -> None:
        """Note a fault of a record."""
        self.findings.setdefault(index, []).append(finding)


def check(sources: list[DataFile], settings: CheckSettings, workers: int = 0) -> CheckResult:
    """Check data files.

    Args:
        sources: files to check, from `read_sources`.
        settings: how to judge.
        workers: processes; 0 works in this one.

    Raises:
        ValueError: if the tokenizer cannot be loaded.
        RuntimeError: if worker processes cannot start.
    """
    start = time.monotonic()
    result = CheckResult.empty(sources, settings)
    users = _check_text(result, workers)
    result.distinct_videos = sum(kind == "video" for kind, _, _ in users)
    result.distinct_images = len(users) - result.distinct_videos
    if settings.images != "skip":
        _check_files(result, users, workers)
    _find_duplicates(result)
    result.seconds = time.monotonic() - start
    return result


def _check_text(result: CheckResult, workers: int) -> dict[FileKey, list[int]]:
    """Check every conversation; returns which records name each image file and each video.

    Files of records that no epoch sees, because their source uses a part of its records, are left out.
    """
    objects = [data for source in result.sources for data in source.objects]
    folders = [(source.image_folder, source.video_folder) for source in result.sources for _ in source.objects]
    seen = _seen(result.sources)
    pool = WorkerPool(partial(check_conversations, settings=result.settings), _text_died, workers)
    outcomes = _in_order(pool, list(enumerate(objects)), RECORDS_PER_CHUNK, "conversations")
    users: dict[FileKey, list[int]] = {}
    for index, outcome in enumerate(outcomes):
        _store(result, index, outcome)
        images, videos = folders[index]
        named = [("image", images, name) for name in outcome.images]
        named += [("video", videos, name) for name in outcome.videos]
        for key in dict.fromkeys(named) if seen[index] else ():
            users.setdefault(key, []).append(index)
    return users


def _seen(sources: Sequence[DataFile]) -> NDArray[np.bool_]:
    """Which records belong to the part of their file that is used."""
    parts = []
    for source in sources:
        used = np.zeros(len(source.objects), bool)
        used[part_of(len(source.objects), source.part, source.seed)] = True
        parts.append(used)
    return np.concatenate(parts)


def _store(result: CheckResult, index: int, outcome: TextOutcome) -> None:
    result.ids[index] = outcome.id
    result.num_words[index] = outcome.num_words
    result.num_images[index] = len(outcome.images)
    result.num_videos[index] = len(outcome.videos)
    for finding in outcome.findings:
        result.add(index, finding)
    if outcome.fits:
        result.encoded[index] = True
        columns = (result.text, result.images, result.truncated, result.supervised, result.videos, result.visual)
        for column, values in zip(columns, zip(*outcome.fits, strict=True), strict=True):
            column[index] = values


def _check_files(result: CheckResult, users: dict[FileKey, list[int]], workers: int) -> None:
    for kind, look, size in (("image", check_images, IMAGES_PER_CHUNK), ("video", check_videos, VIDEOS_PER_CHUNK)):
        keys = [key for key in users if key[0] == kind]
        files = [(folder, name) for _, folder, name in keys]
        pool = WorkerPool(partial(look, settings=result.settings), _file_died, workers)
        for key, findings in zip(keys, _in_order(pool, files, size, f"{kind}s"), strict=True):
            for index in users[key]:
                for finding in findings:
                    result.add(index, finding)


def _find_duplicates(result: CheckResult) -> None:
    """Ids that come back within a file; those of different files may agree."""
    start = 0
    for source in result.sources:
        first: dict[str, int] = {}
        for number, name in enumerate(result.ids[start : start + len(source.objects)]):
            if name is not None and first.setdefault(name, number) != number:
                result.add(start + number, Finding("duplicate_id", f"{name}: as record {first[name]}"))
        start += len(source.objects)


def _in_order(pool: WorkerPool[Item, Result], items: Sequence[Item], size: int, unit: str) -> Iterator[Result]:
    """Results of all items in order, with a progress bar on a terminal and log lines elsewhere."""
    if not items:
        return
    pool.workers = min(pool.workers, ceil(len(items) / size))  # starting a process takes seconds
    every = 0.2 if sys.stderr.isatty() else 30
    with tqdm(total=len(items), unit=f" {unit}", mininterval=every, unit_scale=True) as bar:
        for results in pool.run(chunks_of(items, _fair_size(len(items), size, pool.workers))):
            yield from results
            bar.update(len(results))


def _fair_size(count: int, size: int, workers: int) -> int:
    """Items in a chunk: at most `size`, and few enough that every worker gets several chunks."""
    return max(1, min(size, count // (4 * max(workers, 1))))


def _text_died(item: tuple[int, Any], tried: bool) -> TextOutcome:
    return TextOutcome(identity(item[1]), findings=(_death("the conversation", tried),))


def _file_died(item: tuple[str, str], tried: bool) -> tuple[Finding, ...]:
    return (_death(item[1], tried),)


def _death(what: str, tried: bool) -> Finding:
    return Finding("worker_died", what if tried else f"{what}: not checked, too many processes had died before")
