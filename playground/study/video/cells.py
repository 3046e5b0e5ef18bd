"""What is compared on videos: DUET and controls at two budgets, training-free and trained, and single frames.

A frame has 145 tokens, CLS included; a budget is what a layer sees on average, 53 and 93 % fewer, the shares of the
paper's 960 and 136 of 2,048.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava.compression import CompressionConfig
from playground.clips.build import SHOWN, WHOLE
from playground.study.cells import UNCOMPRESSED, Cell, control, duet, known_budget

BUDGETS = (53, 93)
FRAME_TOKENS = 145

_DUET = {53: (90, 18), 93: (11, 4)}
"""V2V tokens of a frame, dominant (CLS included) and contextual; half leave after 4 of 8 layers, the rest after 6."""

METHODS = ("DUET C", "random", "uniform")

TRAINED = ("DUET C", "uniform")
"""Those of the methods under which models are trained, besides."""


@dataclass(frozen=True)
class VideoCell(Cell):
    """One method at one budget, or frames of the clips that the uncompressed model is shown.

    Attributes:
        shown: a set of held-out questions, as in `playground.clips.build.SHOWN`.
        trained: whether the model that is asked was trained under the method; else it is the uncompressed one.
    """

    shown: str = WHOLE
    trained: bool = False

    @property
    def name(self) -> str:
        """Name for files."""
        if self.shown != WHOLE:
            return f"{self.shown}-frame"
        return f"{super().name}-trained" if self.trained else super().name

    @property
    def model(self) -> VideoCell:
        """The cell whose model is asked."""
        return self if self.trained else VideoCell(UNCOMPRESSED)

    def compression(self, seed: int) -> CompressionConfig:
        """What the method does at this budget.

        Args:
            seed: seed of the model; the random control draws anew for each.

        Raises:
            ValueError: if there is no such method or budget.
        """
        if self.method == UNCOMPRESSED:
            return CompressionConfig()
        dominant, contextual = _DUET[known_budget(self, METHODS, BUDGETS)]
        if self.method == "DUET C":
            return duet(self.method, dominant, contextual)
        return control(self.method, dominant + contextual, seed)


def video_cells() -> list[VideoCell]:
    """All rows: the uncompressed model, then methods at budgets, trained under some of them, then single frames."""
    cells = [VideoCell(UNCOMPRESSED)]
    cells += [VideoCell(method, budget) for budget in BUDGETS for method in METHODS]
    cells += [VideoCell(method, budget, trained=True) for budget in BUDGETS for method in TRAINED]
    return cells + [VideoCell(UNCOMPRESSED, shown=shown) for shown in SHOWN if shown != WHOLE]
