"""Numbers that are not finite in a model that is used: its weights when it is opened, its logits while it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from llava.common.shown import first_of

_SHOWN = 5


class NonFiniteLogitsError(ValueError):
    """A model computed NaN or infinity where it should have chosen a token."""


def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, in order.

    One pass over memory and no copies: a minimum or maximum is NaN where any number is. Integers and tensors without
    numbers (meta device) are left out; of a tensor that is spread over devices each rank looks at its own part.

    Args:
        named: tensors with their names, on any devices; several may have the same.
    """
    finite = []
    for name, whole in named:
        held = whole.detach()
        tensor = held.to_local() if isinstance(held, DTensor) else held
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            comparable = tensor if tensor.element_size() > 1 else tensor.float()  # 8 bits have no minimum or maximum
            finite.append((name, torch.stack(torch.aminmax(comparable)).isfinite().all()))
    return [name for name, one in finite if not one]  # read when all are under way: no wait for each


def require_finite_model(model: nn.Module, name: str) -> None:
    """Refuse to use weights that are not finite: such a model answers nothing, and benchmarks score even that.

    Looks at parameters and, where bitsandbytes has quantised them, at their scales; buffers may hold infinities on
    purpose, as masks do. Takes 0.2 s a GiB on two CPU cores.

    Args:
        model: model as it was opened.
        name: name of what it was opened from.

    Raises:
        ValueError: names the weights.
    """
    weights = dict(model.named_parameters())
    broken = not_finite([*weights.items(), *_scales(weights)])
    if not broken:
        return
    halves = [weights[one] for one in broken if one in weights and weights[one].dtype == torch.float16]
    overflow = any(not bool(torch.isnan(weight).any()) for weight in halves)
    fault = "are" if len(broken) > 1 else "is"
    advice = (
        "float16 ends at 65504: open it in bfloat16 or float32 (--dtype where the program has it)"
        if overflow
        else "fetch or copy it anew, or take an earlier checkpoint"
    )
    raise ValueError(
        f"{name!r} cannot be used: {first_of(broken, _SHOWN)} {fault} not finite (NaN or infinity), so that every "
        f"answer would be meaningless; {advice}."
    )


def _scales(weights: dict[str, nn.Parameter]) -> Iterable[tuple[str, Tensor]]:
    """What multiplies the integers of quantised weights: `SCB` of 8 bits, `absmax` and `offset` of 4 bits."""
    for name, weight in weights.items():
        state: Any = getattr(weight, "quant_state", None)
        places = (weight, state, getattr(state, "state2", None))
        for place in places:
            for field in ("SCB", "absmax", "offset"):
                scale = getattr(place, field, None)
                if isinstance(scale, Tensor):
                    yield f"{name} ({field})", scale


NOT_FINITE = (
    "The model computed numbers that are not finite (NaN or infinity) for this question, so it has no answer. Numbers "
    "beyond 65504 overflow in float16: open the model in bfloat16 or float32 (--dtype where the program has it); if "
    "that does not help, its weights are damaged or trained too far."
)


class FiniteLogits(LogitsProcessor):
    """Watches the logits of one `generate`: a prompt whose logits are not finite ends there, the others go on.

    Args:
        beams: rows of each prompt.
    """

    def __init__(self, beams: int = 1) -> None:
        self._beams = beams
        self._broken: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [rows, V] as they are; zeros in the rows that cannot be used, so that sampling does not fail on them.

        Minus infinity is a token that may not come, unless all are.
        """
        finite = torch.isfinite(scores.amax(dim=-1))  # the largest is NaN where any is
        broken = (~finite).view(-1, self._beams).any(dim=1).repeat_interleave(self._beams)
        self._broken = broken if self._broken is None else self._broken | broken
        return scores.masked_fill(self._broken[:, None], 0.0)

    def added_to(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `generate` under which it is watched."""
        processors = LogitsProcessorList([*(options.get("logits_processor") or ()), self])
        criteria = StoppingCriteriaList([*(options.get("stopping_criteria") or ()), self._has_ended])
        return {**options, "logits_processor": processors, "stopping_criteria": criteria}

    def _has_ended(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self._broken is None or len(self._broken) != len(input_ids):
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return self._broken.to(input_ids.device)

    @property
    def broken(self) -> list[int]:
        """Numbers of the prompts whose logits were not finite."""
        if self._broken is None:
            return []
        return [number for number, one in enumerate(self._broken[:: self._beams].tolist()) if one]

    def require(self) -> None:
        """Say that a prompt's logits were not finite.

        Raises:
            NonFiniteLogitsError: if they were not.
        """
        if self.broken:
            raise NonFiniteLogitsError(NOT_FINITE)
