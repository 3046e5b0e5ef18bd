"""What the study compares: the methods, each at three budgets, as compressions of the playground's model.

The model has 8 decoder layers and 144 patches an image. A budget is what a layer sees on average: 67, 78 and 89 % fewer
visual tokens, the shares of the paper's 192, 128 and 64 of 576. The paper's drops after layers 16 and 24 of 32 come
after 4 and 6 of 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava.compression import CompressionConfig, T2VConfig, V2VConfig

BUDGETS = (67, 78, 89)
LAYERS, PATCHES = 8, 144
UNCOMPRESSED = "uncompressed"

_DUET = {67: (74, 2), 78: (42, 9), 89: (18, 7)}
"""V2V tokens, dominant (CLS included) and contextual; half leave after 4 layers, the rest after 6."""

_VISIONZIP = {67: (40, 8), 78: (27, 5), 89: (13, 3)}
"""The published proportion of 54 + 10; no drop later."""

_PYRAMIDDROP = {
    67: ((2, 4, 6), (26, 13, 6)),
    78: ((1, 3, 5), (29, 15, 7)),
    89: ((1, 3, 5), (4, 2, 1)),
}
"""Layers and tokens left behind them, each time half. See `reaches`."""

_FASTV = {67: 34, 78: 16, 89: 2}
"""Tokens left behind the first layer, by its own attention; the published second of 32, rounded to what 8 have."""

METHODS = ("DUET vanilla", "DUET C", "DUET C+all", "DUET C+S", "VisionZip", "PyramidDrop", "FastV", "random", "uniform")


@dataclass(frozen=True)
class Cell:
    """One method at one budget; without a budget, the uncompressed model."""

    method: str
    budget: int | None = None

    @property
    def name(self) -> str:
        """Name for files, e.g. `duet-c-67`."""
        words = self.method.lower().replace("+", "-").replace(" ", "-")
        return words if self.budget is None else f"{words}-{self.budget}"

    def compression(self, seed: int) -> CompressionConfig:
        """What the method does at this budget.

        Args:
            seed: seed of the model; the random control draws anew for each.

        Raises:
            ValueError: if there is no such method or budget.
        """
        if self.method == UNCOMPRESSED:
            return CompressionConfig()
        budget = known_budget(self, METHODS, BUDGETS)
        if self.method == "VisionZip":
            dominant, contextual = _VISIONZIP[budget]
            return CompressionConfig(v2v=V2VConfig(dominant, contextual, clusters="uniform"))
        if self.method == "PyramidDrop":
            return CompressionConfig(t2v=_drops(*_PYRAMIDDROP[budget]))
        if self.method == "FastV":
            drop = _drops((1,), (_FASTV[budget],))
            return CompressionConfig(t2v=replace(drop, positions="original", scored_by="before"))
        if self.method in ("random", "uniform"):
            return control(self.method, sum(_DUET[budget]), seed)
        return duet(self.method, *_DUET[budget])


def reaches(cell: Cell) -> bool:
    """Whether the method can have this budget here.

    A method that only drops inside the decoder shows all 144 patches to the first layer: 18 tokens a layer, 87.5 %
    fewer, if none were left behind it. PyramidDrop and FastV therefore have about 20 tokens where others have 16.
    """
    return cell.budget != BUDGETS[-1] or cell.method not in ("PyramidDrop", "FastV")


def all_cells() -> list[Cell]:
    """Every method at every budget."""
    return [Cell(method, budget) for budget in BUDGETS for method in METHODS]


def known_budget(cell: Cell, methods: Sequence[str], budgets: Sequence[int]) -> int:
    """The budget of a cell.

    Raises:
        ValueError: if its method or budget is another; names what there is.
    """
    if cell.budget is None or cell.method not in methods or cell.budget not in budgets:
        raise ValueError(
            f"There is no {cell.method!r} at {cell.budget!r} % fewer tokens; the methods are "
            f"{', '.join(methods)}, the budgets {', '.join(map(str, budgets))}."
        )
    return cell.budget


def duet(variant: str, dominant: int, contextual: int) -> CompressionConfig:
    """DUET by its variant, such as `DUET C`, with so many tokens behind V2V."""
    clusters = "uniform" if variant == "DUET vanilla" else "anchored"
    queries = {"DUET C+all": "text", "DUET C+S": "salient"}.get(variant, "last")
    return CompressionConfig(
        V2VConfig(dominant, contextual, clusters=clusters), T2VConfig((4, 6), (0.5, 0.0), queries=queries)
    )


def control(score: str, tokens: int, seed: int) -> CompressionConfig:
    """A choice that looks at no content, `random` or `uniform`, with DUET's drops."""
    return CompressionConfig(
        V2VConfig(tokens, 0, score=score, seed=seed), T2VConfig((4, 6), (0.5, 0.0), score=score, seed=seed)
    )


def _drops(layers: tuple[int, ...], left: tuple[int, ...]) -> T2VConfig:
    """Drops that leave so many of all patches; half a token more, as shares are floored."""
    return T2VConfig(layers, tuple((count + 0.5) / PATCHES for count in left))
