"""What is compared on videos: DUET and two controls at two budgets, and single frames without compression.

A frame has 145 tokens, CLS included; a budget is what a layer sees on average, 53 and 93 % fewer, the shares of the
paper's 960 and 136 of 2,048.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava.compression import CompressionConfig, T2VConfig, V2VConfig
from playground.clips.build import SHOWN, WHOLE
from playground.study.cells import UNCOMPRESSED, Cell

BUDGETS = (53, 93)
FRAME_TOKENS = 145

_DUET = {53: (90, 18), 93: (11, 4)}
"""V2V tokens of a frame, dominant (CLS included) and contextual; half leave after 4 of 8 layers, the rest after 6."""

METHODS = ("DUET C", "random", "uniform")
_LAYERS, _KEEP = (4, 6), (0.5, 0.0)


@dataclass(frozen=True)
class VideoCell(Cell):
    """One method at one budget, or frames of the clips that the uncompressed model is shown.

    Attributes:
        shown: a set of held-out questions, as in `playground.clips.build.SHOWN`.
    """

    shown: str = WHOLE

    @property
    def name(self) -> str:
        """Name for files."""
        return super().name if self.shown == WHOLE else f"{self.shown}-frame"

    def compression(self, seed: int) -> CompressionConfig:
        """What the method does at this budget.

        Args:
            seed: seed of the model; the random control draws anew for each.

        Raises:
            ValueError: if there is no such method or budget.
        """
        if self.method == UNCOMPRESSED:
            return CompressionConfig()
        if self.method not in METHODS or self.budget not in BUDGETS:
            raise ValueError(
                f"There is no {self.method!r} at {self.budget!r} % fewer tokens; the methods are "
                f"{', '.join(METHODS)}, the budgets {', '.join(map(str, BUDGETS))}."
            )
        dominant, contextual = _DUET[self.budget]
        if self.method == "DUET C":
            return CompressionConfig(V2VConfig(dominant, contextual), T2VConfig(_LAYERS, _KEEP))
        score = self.method
        v2v = V2VConfig(dominant + contextual, 0, score=score, seed=seed)
        return CompressionConfig(v2v, T2VConfig(_LAYERS, _KEEP, score=score, seed=seed))


def video_cells() -> list[VideoCell]:
    """All rows: the uncompressed model, then methods at budgets, then single frames."""
    cells = [VideoCell(UNCOMPRESSED)]
    cells += [VideoCell(method, budget) for budget in BUDGETS for method in METHODS]
    return cells + [VideoCell(UNCOMPRESSED, shown=shown) for shown in SHOWN if shown != WHOLE]
