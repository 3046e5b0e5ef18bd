"""Accuracies of the study with intervals, from the stored answers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llava.common.json_files import write_json
from playground.quickstart.fields import read_record
from playground.quickstart.results import BLANK, Results
from playground.study.cells import UNCOMPRESSED, Cell, all_cells
from playground.study.place import Place

TRAINING_FREE, TRAINED = "training-free", "trained"
RESAMPLES = 4000

Right = NDArray[np.bool_]
"""[S, Q]: whether the model of each of S seeds answered each of Q questions right."""


@dataclass(frozen=True)
class Row:
    """One method at one budget, in one half of the study. Shares are between 0 and 1, intervals hold 95 %.

    Attributes:
        half: `training-free` or `trained`.
        method, budget: as in `Cell`; the uncompressed model and blank images have no budget.
        tokens: visual tokens that a layer saw, as counted; mean over layers and seeds.
        right: right answers of each seed.
        questions: questions of each seed.
        accuracy, interval: mean over seeds.
        relative, relative_interval: mean over seeds of the accuracy divided by the uncompressed model's; None if
            that has no right answer.
    """

    half: str
    method: str
    budget: int | None
    tokens: float
    right: tuple[int, ...]
    questions: int
    accuracy: float
    interval: tuple[float, float]
    relative: float | None
    relative_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Saved:
    """What a study was measured on; a summary of one adds its rows."""

    about: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, dataclasses.asdict(self), indent=1)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: if the file holds anything else; names file and field.
        """
        return read_record(cls, path, "run the study again, which writes it anew")


@dataclass(frozen=True)
class Summary(Saved):
    """All rows, and what they were measured on."""

    rows: list[Row]

    def row(self, half: str, method: str, budget: int | None = None) -> Row:
        """The row of a cell.

        Raises:
            ValueError: if there is none.
        """
        for row in self.rows:
            if (row.half, row.method, row.budget) == (half, method, budget):
                return row
        raise ValueError(f"The study has no row for {method!r} at {budget!r} in the half {half!r}.")


def summarise(place: Place) -> Summary:
    """Read all answers.

    Raises:
        ValueError: if a cell is not finished.
    """
    seeds = range(place.settings.seeds)
    free = [Results.load(_finished(place.training_free(seed))) for seed in seeds]
    dense, tokens = _right(free, UNCOMPRESSED)
    rows = [_row(TRAINING_FREE, Cell(UNCOMPRESSED), dense, tokens, dense)]
    rows.append(_row(TRAINING_FREE, Cell(BLANK), *_right(free, BLANK), dense))
    rows += [_row(TRAINING_FREE, cell, *_right(free, cell.name), dense) for cell in all_cells()]
    for cell in all_cells():
        own = [Results.load(_finished(place.trained(seed, cell))) for seed in seeds]
        rows.append(_row(TRAINED, cell, *_right(own, cell.name), dense))
    about = free[0].about | dataclasses.asdict(place.settings)
    about |= {"seconds": None if place.seconds is None else int(place.seconds)}
    return Summary({key: about[key] for key in sorted(about) if "path" not in key and "folder" not in key}, rows)


def _finished(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing: the study is not finished. The same command goes on with it.")
    return path


def _right(results: list[Results], name: str) -> tuple[Right, float]:
    """Right answers of each seed, and tokens a layer."""
    settings = [result.setting(name) for result in results]
    right = np.array([result.correct(setting) for result, setting in zip(results, settings, strict=True)])
    return right, float(np.mean([setting.average_tokens for setting in settings]))


def _row(half: str, cell: Cell, right: Right, tokens: float, dense: Right) -> Row:
    return Row(
        half,
        cell.method,
        cell.budget,
        tokens,
        right=tuple(int(count) for count in right.sum(axis=1)),
        questions=right.shape[1],
        **compared(right, dense),
    )


def compared(right: Right, dense: Right) -> dict[str, Any]:
    """The fields `accuracy`, `interval`, `relative` and `relative_interval` of a row.

    Args:
        right: of the row.
        dense: of the uncompressed model.
    """
    accuracies, against = right.mean(axis=1), dense.mean(axis=1)
    drawn, drawn_against = resampled(right), resampled(dense)
    defined = bool(against.all())
    usable = drawn_against.all(axis=1)  # few questions may be drawn so that none is right
    return {
        "accuracy": float(accuracies.mean()),
        "interval": interval(drawn.mean(axis=1)),
        "relative": float((accuracies / against).mean()) if defined else None,
        "relative_interval": interval((drawn[usable] / drawn_against[usable]).mean(axis=1)) if defined else None,
    }


def resampled(right: Right) -> NDArray[np.float64]:
    """Accuracies in repeated draws of seeds and questions, with replacement.

    Every call draws the same seeds and questions, so that two methods are compared on the same draw.

    Args:
        right: [S, Q].

    Returns:
        [R, S]: the accuracy of each drawn seed on the drawn questions; R is `RESAMPLES`.
    """
    seeds, questions = right.shape
    drawn, weights = _draws(seeds, questions)
    accuracies = weights @ right.T.astype(np.float64) / questions  # [R, S]
    return np.take_along_axis(accuracies, drawn, axis=1)


@cache
def _draws(seeds: int, questions: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Drawn seeds, [R, S], and how often each question was drawn, [R, Q]."""
    draw = np.random.default_rng(0)
    weights = draw.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES)
    return draw.integers(seeds, size=(RESAMPLES, seeds)), weights


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """What holds the middle 95 % of the values."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
