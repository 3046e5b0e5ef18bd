"""Accuracies on videos with intervals, and per kind of question."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava.cost.flops import average_visual_tokens, tokens_per_layer
from llava.cost.machine import describe_machine
from playground.clips.clip import FRAMES, KINDS
from playground.study.cells import LAYERS
from playground.study.place import Place
from playground.study.summary import Right, Saved, compared
from playground.study.video.cells import FRAME_TOKENS, VideoCell, video_cells
from playground.study.video.work import ask


@dataclass(frozen=True)
class VideoRow:
    """One row. Shares are between 0 and 1, intervals hold 95 %.

    Attributes:
        shown, method, budget, trained: as in `VideoCell`.
        tokens: visual tokens that a layer sees of a video, mean over layers.
        right: right answers of each seed.
        questions: questions of each seed.
        right_of, questions_of: both of all seeds together, by kind of question.
        accuracy, interval: mean over seeds.
        relative, relative_interval: the accuracy divided by the uncompressed model's, mean over seeds; None if that has
            no right answer.
    """

    shown: str
    method: str
    budget: int | None
    trained: bool
    tokens: float
    right: tuple[int, ...]
    questions: int
    right_of: dict[str, int]
    questions_of: dict[str, int]
    accuracy: float
    interval: tuple[float, float]
    relative: float | None
    relative_interval: tuple[float, float] | None


@dataclass(frozen=True)
class VideoSummary(Saved):
    """All rows, and what they were measured on; the first is the uncompressed model's."""

    rows: list[VideoRow]


def summarise(place: Place) -> VideoSummary:
    """Ask the models of every seed all that is not answered yet, and count.

    Args:
        place: the study's folder, whose models are trained.

    Raises:
        ValueError: if some question has no answer.
    """
    rows: list[VideoRow] = []
    dense: Right | None = None
    for cell in video_cells():
        answers = [ask(place, seed, cell) for seed in range(place.settings.seeds)]
        right = np.array([[good for _, good in one] for one in answers])
        dense = right if dense is None else dense
        rows.append(_row(cell, right, dense, [kind for kind, _ in answers[0]]))
    seconds = None if place.seconds is None else int(place.seconds)
    about = describe_machine() | dataclasses.asdict(place.settings) | {"seconds": seconds}
    return VideoSummary({name: about[name] for name in sorted(about)}, rows)


def _row(cell: VideoCell, right: Right, dense: Right, kinds: Sequence[str]) -> VideoRow:
    of_kind = {kind: np.array([one == kind for one in kinds]) for kind in KINDS}
    return VideoRow(
        cell.shown,
        cell.method,
        cell.budget,
        cell.trained,
        tokens=tokens_of(cell),
        right=tuple(int(count) for count in right.sum(axis=1)),
        questions=right.shape[1],
        right_of={kind: int(right[:, which].sum()) for kind, which in of_kind.items()},
        questions_of={kind: int(which.sum()) * len(right) for kind, which in of_kind.items()},
        **compared(right, dense),
    )


def tokens_of(cell: VideoCell) -> float:
    """Visual tokens of a video that a layer sees; a single frame is shown as often as a video has frames."""
    compression = cell.compression(0)
    of_frame = FRAME_TOKENS if compression.v2v is None else compression.v2v.dominant + compression.v2v.contextual
    return average_visual_tokens(tokens_per_layer(compression.t2v, FRAMES * int(of_frame), LAYERS))
