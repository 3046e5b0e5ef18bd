"""What an evaluation measured: stored as one JSON file, counted, and printed as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from llava.common.json_files import write_json
from playground.quickstart.fields import read_record

BLANK = "blank images"


@dataclass(frozen=True)
class Question:
    """One held-out question about one image (a line of the question file)."""

    question_id: int | str
    image: str
    text: str
    answer: str
    category: str = ""


@dataclass
class Setting:
    """One configuration and what was measured under it.

    Attributes:
        name: name of the row; `BLANK` is the uncompressed model that is shown empty images.
        compression: what `CompressionConfig.to_dict` gives.
        tokens_per_layer: visual tokens that each decoder layer was seen to work on, mean over the images looked at.
        flops: FLOPs of one prefill, images included, at the mean prompt length.
        answers: what the model said, question by question.
        batch_seconds: measured seconds and questions of every batch.
    """

    name: str
    compression: dict[str, Any]
    tokens_per_layer: list[float] = field(default_factory=list)
    flops: int = 0
    answers: list[str] = field(default_factory=list)
    batch_seconds: list[tuple[float, int]] = field(default_factory=list)

    @property
    def average_tokens(self) -> float:
        """Visual tokens in a layer, averaged over layers."""
        return mean(self.tokens_per_layer)

    @property
    def seconds_per_question(self) -> float:
        """Median over batches, so that a hiccup of the machine does not count."""
        return median(seconds / count for seconds, count in self.batch_seconds)


@dataclass
class Trace:
    """Where the patches of one image went under one setting.

    Attributes:
        setting: name of the setting.
        question: number of the question in the results.
        fate: value of `llava.compression.v2v.PatchRole` of each patch; empty if nothing was merged.
        target: number of the visual token that each patch became or joined, -1 where it was dropped.
        dropped_after: number of layers after which each visual token was dropped, None if never.
    """

    setting: str
    question: int
    fate: list[int]
    target: list[int]
    dropped_after: list[int | None]


@dataclass
class Results:
    """A whole evaluation. `fingerprint` names the model and questions it belongs to."""

    fingerprint: dict[str, Any]
    about: dict[str, Any]
    questions: list[Question]
    settings: list[Setting]
    traces: list[Trace] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write as JSON; a reader never sees half a file."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote.

        Raises:
            ValueError: if the file holds anything else; names file and field.
        """
        return read_record(cls, path, "remove the file and run what wrote it again")

    def setting(self, name: str) -> Setting:
        """The setting of that name.

        Raises:
            ValueError: if there is none.
        """
        for setting in self.settings:
            if setting.name == name:
                return setting
        known = ", ".join(setting.name for setting in self.settings)
        raise ValueError(f"There is no setting {name!r}; these were evaluated: {known}.")

    def correct(self, setting: Setting) -> list[bool]:
        """Whether the answer to each answered question is right."""
        pairs = zip(setting.answers, self.questions, strict=False)
        return [plain(answer) == plain(question.answer) for answer, question in pairs]


def require_measured(results: Results, path: Path) -> None:
    """Refuse results that no table and no picture can be made of.

    Raises:
        ValueError: if something is not measured, or a trace does not fit; names the file and the setting.
    """
    if not results.settings:
        raise ValueError(f"{str(path)!r} holds no settings; run what wrote it again.")
    layers = len(results.settings[0].tokens_per_layer)
    for one in results.settings:
        seen = one.tokens_per_layer  # T2V may leave the last layers none
        counted = one.flops > 0 and len(seen) == layers > 0 and min(seen) >= 0 and max(seen) > 0
        timed = bool(one.batch_seconds) and all(seconds > 0 and count > 0 for seconds, count in one.batch_seconds)
        if not (counted and timed and one.answers and len(one.answers) == len(results.questions)):
            raise ValueError(f"{str(path)!r}: the setting {one.name!r} is not measured to its end; run it again.")
    names = {one.name for one in results.settings}
    for number, trace in enumerate(results.traces):
        patches, tokens = len(trace.fate), len(trace.dropped_after)
        whole = patches > 0 and math.isqrt(patches) ** 2 == patches == len(trace.target)
        fits = whole and all(
            0 <= fate <= 3 and (fate == 0 or 0 <= target < tokens)
            for fate, target in zip(trace.fate, trace.target, strict=True)
        )
        anchors = {target for fate, target in zip(trace.fate, trace.target, strict=False) if fate == 2}
        fits = fits and all(t in anchors for f, t in zip(trace.fate, trace.target, strict=True) if f == 3)
        if not (fits and trace.setting in names and 0 <= trace.question < len(results.questions)):
            raise ValueError(f"{str(path)!r}: traces[{number}] fits no question, setting or picture; run it again.")


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % Wilson interval; all between 0 and 1."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: Sequence[bool]) -> Accuracy:
        """Count right answers.

        Raises:
            ValueError: if there are no answers.
        """
        if not correct:
            raise ValueError("No question was answered; an accuracy needs at least one.")
        value = sum(correct) / len(correct)
        low, high = wilson_interval(sum(correct), len(correct))
        return cls(value, low, high)


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a binomial share (95 % by default)."""
    share = successes / trials
    spread = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    centre = share + z**2 / (2 * trials)
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def plain(answer: str) -> str:
    """An answer without what does not matter: capitals, full stop, extra spaces."""
    return " ".join(answer.lower().rstrip(". ").split())


@dataclass(frozen=True)
class Row:
    """One line of the table, as numbers; shares are relative to the uncompressed model."""

    name: str
    accuracy: Accuracy
    tokens: float
    fewer_tokens: float
    gflops: float
    flops_share: float
    milliseconds: float
    time_share: float

    @property
    def costs(self) -> tuple[str, ...]:
        """Everything but name and accuracy, as it is printed."""
        return (
            f"{self.tokens:.2f}",
            f"{self.fewer_tokens:.0%}",
            f"{self.gflops:.3f}",
            f"{self.flops_share:.0%}",
            f"{self.milliseconds:.2f}",
            f"{self.time_share:.0%}",
        )


def rows(results: Results) -> list[Row]:
    """The table, in the order of evaluation; the first setting is what the others are compared with."""
    dense = results.settings[0]
    return [
        Row(
            name=setting.name,
            accuracy=Accuracy.of(results.correct(setting)),
            tokens=setting.average_tokens,
            fewer_tokens=1 - setting.average_tokens / dense.average_tokens,
            gflops=setting.flops / 1e9,
            flops_share=setting.flops / dense.flops,
            milliseconds=1e3 * setting.seconds_per_question,
            time_share=setting.seconds_per_question / dense.seconds_per_question,
        )
        for setting in results.settings
    ]


def text_table(results: Results) -> str:
    """The table for a terminal."""
    header = ("configuration", "accuracy", "95 % interval", "visual tokens", "fewer", "GFLOPs", "", "ms/question", "")
    body = [
        (
            row.name,
            f"{row.accuracy.value:.1%}",
            f"{row.accuracy.low:.1%} - {row.accuracy.high:.1%}",
            *row.costs,
        )
        for row in rows(results)
    ]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in [header, *body])
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:]])
