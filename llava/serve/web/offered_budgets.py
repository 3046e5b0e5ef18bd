"""The budgets that the page offers: presets that fit the model, files, and what sliders say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common.presets import presets
from llava.compression.config import CompressionConfig, T2VConfig, V2VConfig
from llava.cost.flops import average_visual_tokens, describe, visual_tokens_per_layer
from llava.cost.seen_media import SeenMedium, seen_by, usual_medium
from llava.data.families.base import ModelInputs
from llava.inference.made_batches import realised

OWN, NONE, BY_HAND = "the model's own budget", "no compression", "set by hand"
DROPS = 3
"""Drops between layers that can be set by hand."""


@dataclass(frozen=True)
class Sliders:
    """What the controls of a budget stand at.

    Attributes:
        merges: whether V2V is on.
        dominant, contextual: tokens of an image, or percent of them where their number depends on the image.
        layers: after how many layers each drop takes place; 0 for none.
        shares: percent of the visual tokens that entered which stay behind each.
        queries: who votes, see `T2VConfig.queries`.
    """

    merges: bool
    dominant: float
    contextual: float
    layers: tuple[int, ...]
    shares: tuple[float, ...]
    queries: str = "last"

    @classmethod
    def at(cls, values: Sequence[Any]) -> Sliders:
        """From the values of the controls, in their order; see `values`."""
        merges, dominant, contextual, queries, *drops = values
        layers, shares = tuple(int(layer or 0) for layer in drops[::2]), tuple(float(one or 0) for one in drops[1::2])
        return cls(bool(merges), float(dominant or 0), float(contextual or 0), layers, shares, str(queries))

    def values(self) -> list[Any]:
        """The values of the controls: V2V, its two numbers, who votes, then layer and share of each drop."""
        drops = [value for pair in zip(self.layers, self.shares, strict=True) for value in pair]
        return [self.merges, self.dominant, self.contextual, self.queries, *drops]


class OfferedBudgets:
    """The budgets of one model.

    Args:
        model: model of any family.
        inputs: makes inputs of the model.
        files: YAML files to offer beside the presets.

    Attributes:
        named: budgets by the name that the page shows.
        counted: whether V2V is set in tokens; else in percent of an image's, whose number varies.
        most: largest number of tokens (or percent) that can be kept of an image.

    Raises:
        ValueError: if a file cannot be read, does not fit the model, or is called like another budget.
    """

    def __init__(self, model: Any, inputs: ModelInputs, files: Sequence[str | Path] = ()) -> None:
        self.model = model
        self.layers = len(model.decoder.layers)
        settings = model.config.to_dict()
        self._medium = usual_medium(settings)
        with suppress(ValueError):  # without a processor, as the model's configuration alone has it
            self._medium = realised(inputs, self._medium) or self._medium
        self._vision = seen_by(settings, self._medium)
        tokens = model.tower_tokens()
        self.counted, self.most = tokens is not None, 99 if tokens is None else tokens
        self.named = {OWN: model.compression, NONE: CompressionConfig()}
        for file in files:
            name = Path(file).stem
            if name in (*self.named, BY_HAND):
                raise ValueError(f"--budgets names a file {str(file)!r}, but {name!r} is offered already; rename it.")
            self.named[name] = model.checked(str(file))
        for name in presets():
            label, config = self._fitting(name)
            if config is not None and config != CompressionConfig():
                self.named.setdefault(label, config)

    def _fitting(self, name: str) -> tuple[str, CompressionConfig | None]:
        """A preset as it is, or with its layers scaled to the model's depth; None where it does not fit it."""
        try:
            return name, self.model.checked(name)
        except ValueError:
            pass
        try:
            scaled = CompressionConfig.from_preset(name).scaled_to(self.layers)
            return f"{name}, scaled to {self.layers} layers", self.model.checked(scaled)
        except ValueError:
            return name, None

    def chosen(self, name: str, sliders: Sliders) -> CompressionConfig:
        """The budget under a name; of `BY_HAND` that of the sliders.

        Raises:
            ValueError: if the sliders say none that fits the model, or there is no such name.
        """
        if name == BY_HAND:
            return self.by_hand(sliders)
        if name not in self.named:
            raise ValueError(f"There is no budget {name!r} here; choose one of the list.")
        return self.named[name]

    def by_hand(self, sliders: Sliders) -> CompressionConfig:
        """What the sliders say; all that they leave open is as in the model's own budget.

        Raises:
            ValueError: if it does not fit the model; names the control.
        """
        own = self.model.compression
        v2v = t2v = None
        if sliders.merges:
            dominant, contextual = self._amount(sliders.dominant), self._amount(sliders.contextual)
            base = own.v2v or V2VConfig(dominant, contextual)
            v2v = dataclasses.replace(base, dominant=dominant, contextual=contextual)
        drops = [(layer, share) for layer, share in zip(sliders.layers, sliders.shares, strict=True) if layer]
        if drops:
            layers, keep = tuple(layer for layer, _ in drops), tuple(share / 100 for _, share in drops)
            t2v = dataclasses.replace(
                own.t2v or T2VConfig(layers, keep), layers=layers, keep=keep, queries=sliders.queries
            )
        config: CompressionConfig = self.model.checked(CompressionConfig(v2v, t2v))
        return config

    def _amount(self, value: float) -> int | float:
        """A slider of V2V as the configuration has it."""
        return int(value) if self.counted or value == 0 else value / 100

    def sliders_of(self, config: CompressionConfig) -> Sliders:
        """Where the sliders stand for a budget; what they cannot show is at its default."""
        v2v, t2v = config.v2v, config.t2v
        dominant, contextual = self.most // 2, max(self.most // 20, 1)
        if v2v is not None:
            dominant, contextual = self._shown(v2v.dominant, dominant), self._shown(v2v.contextual, contextual)
        drops = list(zip(t2v.layers, t2v.keep, strict=True))[:DROPS] if t2v else []
        drops += [(0, 0.5)] * (DROPS - len(drops))
        layers, shares = tuple(layer for layer, _ in drops), tuple(round(100 * share, 1) for _, share in drops)
        return Sliders(v2v is not None, dominant, contextual, layers, shares, t2v.queries if t2v else "last")

    def _shown(self, amount: int | float, otherwise: int) -> int:
        is_share = isinstance(amount, float)
        if self.counted:
            return min(max(int(amount * self.most), 1) if is_share else int(amount), self.most)
        return round(100 * amount) if is_share or amount == 0 else otherwise

    def in_words(self, config: CompressionConfig) -> str:
        """What a budget does to a usual image (or video) of the model's family, in a sentence or two.

        Raises:
            ValueError: if it does not fit the model.
        """
        medium, vision = self._medium, self._vision
        tokens = visual_tokens_per_layer(self.model.fitted(config), self.layers, vision)
        what = "An image" if vision == SeenMedium.of(vision.tower) else f"One {medium}"
        if config == CompressionConfig():
            return f"{what} is {vision.plain} visual tokens in every layer."
        average = average_visual_tokens(tokens)
        fewer = f"{1 - average / vision.plain:.0%} fewer" if average <= vision.plain else "more"
        of = f"{average:.1f} of {vision.plain} visual tokens on average ({fewer})"
        return f"{what} is {of}; by layer {describe(tokens)}."
