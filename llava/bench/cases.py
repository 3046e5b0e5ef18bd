"""What the benchmark times: a case, and the settings that cases are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llava.compression.config import CompressionConfig
from llava.cost.seen_media import Medium

BASELINE = "none"
CHECKPOINTING = ("off", "before_drop", "on", "auto")
"""Which layers compute their activations again: none, those before the first drop, all, or as memory allows."""


def as_trained(model: Any, again: int | None = None) -> None:
    """Training mode, and which layers compute their activations again in the backward pass.

    Args:
        model: model of this project or of transformers.
        again: number of the first decoder layers that do; 0 for none, None for all.
    """
    model.train()
    if again == 0:
        model.activation_checkpointing_disable()
        return
    model.activation_checkpointing_enable()
    model.disable_input_require_grads()  # the embeddings are trained, and hooks of every call would stay
    for layer in () if again is None else model.decoder.layers[again:]:
        layer.gradient_checkpointing = False


@dataclass(frozen=True)
class Case:
    """One thing that is timed, a row of the result.

    Attributes:
        compression: name of the budget.
        packing: `off` (padded rows), `on` (rows end to end) or `auto`, as in the model's forward.
        run: the work; gets what `before` returned.
        before: what has to be done first and is not timed, such as the prefill in front of decoding.
        work: FLOPs of one call on the tokens of the rows, padding not counted; bytes that are read where these bind
            (decoding); 0 where nothing is computed of it.
        padded_work: the same with all rows as long as the longest.
        units: samples or tokens of one call.
        peer: whose program it is; "" for this project's.
        about: further values of the row.
    """

    compression: str
    packing: str
    run: Callable[[Any], object]
    before: Callable[[], Any] = lambda: None
    work: float = 0
    padded_work: float = 0
    units: float | None = None
    peer: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Tells it from the others of its mode and text."""
        more = [str(self.about["checkpointing"])] if "checkpointing" in self.about else []
        return " ".join(filter(None, [self.compression, self.peer, f"packing {self.packing}", *more]))


@dataclass(frozen=True)
class Setting:
    """What a mode makes its cases of.

    Attributes:
        model: model of LLaVA's own format, with random weights.
        compressions: budgets by name, as the model takes them; the first is what others are compared with.
        lengths: text tokens of each row.
        packings: values of `packing` to run; padded rows of the first budget are always run.
        checkpointing: of `CHECKPOINTING`, to run a training step under.
        peers: other programs to run, by name.
        new_tokens: that decoding makes.
        medium: what a row shows; None for what is usual of the model's family.
        train_flags: of the mode `recipe`: further flags of the training program, as one would type them.
    """

    model: Any
    compressions: Mapping[str, CompressionConfig]
    lengths: tuple[int, ...]
    packings: tuple[str, ...] = ("off",)
    checkpointing: tuple[str, ...] = ("off",)
    peers: tuple[str, ...] = ()
    new_tokens: int = 16
    medium: Medium | None = None
    train_flags: str = ""

    @property
    def baseline(self) -> str:
        """The budget that others are compared with."""
        return next(iter(self.compressions))

    def variants(self) -> list[tuple[str, CompressionConfig, str]]:
        """Name, budget and packing of each case, the reference (the first budget, padded) first."""
        chosen = [(name, config, form) for form in self.packings for name, config in self.compressions.items()]
        first = (self.baseline, self.compressions[self.baseline], "off")
        return [first, *(variant for variant in chosen if variant != first)]
