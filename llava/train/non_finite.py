"""What is said of NaN or infinity in a loss, in a gradient, and in a weight before it is saved."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from llava.common.shown import first_of
from llava.model.collectives import is_partitioned, of_all_ranks
from llava.model.finite import not_finite

logger = logging.getLogger(__name__)

SMALLEST_LOSS_SCALE = 2.0**-14
"""Loss scale of fp16 that only gradients broken in every step lead to: the smallest normal number of float16."""
_SHOWN = 32
_ADVICE = "Lower --learning_rate, prefer --bf16 to --fp16, or look at these samples."
_GO_ON = "The same command goes on from the last checkpoint."
_ANEW = "There is no checkpoint to go on from: the next start begins anew."
_ABSURD = 1e6
"""Magnitude of a weight that steps far too large lead to, and training does not."""


def loss_fault(loss: float, step: int, ids: Sequence[str], model: nn.Module, sampled: Mapping[str, float]) -> str:
    """What to say of a loss that is not finite, which no checkpoint and no saved model has learned from.

    Args:
        loss: as it was computed.
        step: that it belongs to, counting from 1.
        ids: ids of the samples it was computed from.
        model: whose frozen weights are looked at, to tell whether the samples are to blame.
        sampled: magnitudes of trained weights before that step, by name.
    """
    frozen = ((name, weight) for name, weight in model.named_parameters() if not weight.requires_grad)
    broken = [*not_finite(frozen), *(name for name, size in sampled.items() if not math.isfinite(size))]
    largest, size = max(sampled.items(), key=lambda one: one[1], default=("", 0.0))
    blame = _ADVICE
    if broken:
        blame = f"Not these samples are to blame: {broken[0]} was not finite before. Start from sound weights, with a "
        blame += "lower --learning_rate."
    elif size > _ABSURD:
        blame = f"Not these samples are to blame: {largest} holds a weight of magnitude {size:.1g} after the steps "
        blame += "before. Lower --learning_rate or give --max_grad_norm, and begin with sound weights, not with the "
        blame += "last checkpoint."
    return (
        f"The loss is {loss} in step {step}; nothing that learned from it was saved. Samples of the batch: "
        f"{_listed(ids)}. {blame}"
    )


def require_finite_gradient(
    norm: Any, step: int, ids: Sequence[str], scaled: bool = False, scale: float | None = None, resumable: bool = True
) -> None:
    """Stop on a gradient whose norm is not finite. All ranks must call it, with the same norm.

    Where the loss is scaled, as fp16 wants it, the step is only noted: the scaler leaves it out and goes on with a
    smaller scale.

    Args:
        norm: norm of the whole gradient before clipping; None where an engine does not tell it.
        step: that is under way, counting from 1.
        ids: ids of the samples of this rank in all batches of the step.
        scaled: whether a scaler looks at the gradient; fp16 on a CPU has none.
        scale: scale of the loss; None where an engine keeps it, and stops by itself when it is too small.
        resumable: whether there is a checkpoint that a run goes on from.

    Raises:
        FloatingPointError: names step and the samples of all ranks; the step is in no checkpoint.
    """
    value = None if norm is None else float(norm)
    if value is None or (math.isfinite(value) and value >= 0):  # DeepSpeed's -1 stands for a norm that is not finite
        return
    if scaled and (scale is None or scale > SMALLEST_LOSS_SCALE):
        logger.warning("The gradient overflowed in step %d; the scaler of the loss leaves this step out.", step)
        return
    raise FloatingPointError(
        f"The norm of the gradient is {value if value >= 0 else math.nan} in step {step}, though the loss is finite; "
        f"this step is in no checkpoint. Samples of the step: {_listed(of_all_ranks(ids))}. {_ADVICE} "
        f"{_GO_ON if resumable else _ANEW}"
    )


def require_finite_weights(model: nn.Module, optimizer: Any | None, step: int, resumable: bool = True) -> None:
    """Refuse to save weights or optimizer state that are not finite. All ranks must call it.

    Args:
        model: whose trained weights are looked at; under ZeRO-3 each rank looks at its pieces.
        optimizer: whose state is looked at as well; None leaves it out.
        step: that was taken last.
        resumable: whether there is a checkpoint that a run goes on from.

    Raises:
        FloatingPointError: at every rank; names a weight.
    """
    found = [name for name in of_all_ranks([broken_weight(model, optimizer)]) if name is not None]
    if found:
        raise FloatingPointError(
            f"After step {step} {found[0]} is not finite, so nothing was saved. Lower --learning_rate or prefer "
            f"--bf16 to --fp16. {_GO_ON if resumable else _ANEW}"
        )


def require_finite_start(model: nn.Module, name: str) -> None:
    """Refuse to train from weights that are not finite; under ZeRO-3 each rank holds pieces, and nothing is looked at.

    One pass over the weights: 0.2 s a GiB on two CPU cores, in float32 and bfloat16; 5 s for 7B parameters in float32.

    Args:
        model: model as it was opened.
        name: name of what it was opened from.

    Raises:
        ValueError: names a weight.
    """
    if any(map(is_partitioned, model.parameters())):
        return
    broken = broken_weight(model, None, frozen=True)
    if broken is not None:
        raise ValueError(
            f"{name!r} cannot be trained: {broken} is not finite (NaN or infinity) before the first step. Fetch or "
            "copy it anew, or start from an earlier checkpoint; it may be of the language model, of --vision_tower or "
            "of --pretrain_mm_mlp_adapter, as its name says."
        )


def broken_weight(model: nn.Module, optimizer: Any | None, frozen: bool = False) -> str | None:
    """What is not finite on this rank: the name of a weight, or `the optimizer's state`; None if all is well.

    One pass over memory, and no copies: a minimum or maximum is NaN where any number is.

    Args:
        model: its trained weights.
        optimizer: its state; None leaves it out.
        frozen: the weights that are not trained as well.
    """
    return next(iter(not_finite(_tensors(model, optimizer, frozen))), None)


def trained_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The trained weights by name, as far as this rank holds them: under ZeRO-3 its piece of each."""
    return _tensors(model, None, frozen=False)


def _tensors(model: nn.Module, optimizer: Any | None, frozen: bool) -> Iterator[tuple[str, Tensor]]:
    """Floating point tensors, as far as this rank holds them: under ZeRO-3 its piece of each weight."""
    for name, weight in model.named_parameters():
        if (frozen or weight.requires_grad) and weight.is_floating_point():
            yield name, getattr(weight, "ds_tensor", weight)
    state = getattr(optimizer, "state", None) or {}
    for values in state.values():
        for tensor in values.values() if isinstance(values, dict) else ():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                yield "the optimizer's state", tensor


def _listed(ids: Sequence[str]) -> str:
    return first_of([repr(one) for one in ids], _SHOWN)
