"""Comparing what was measured with what was recorded, each quantity by its own tolerance.

Whole numbers and truth values must be equal. Accepted errors of the others are in proportion to `--tolerance`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.verify.case_settings import Deviation

DEFAULT_TOLERANCE = 1e-4

# Accepted error of a quantity as a multiple of --tolerance; 1 for hidden states, embeddings and logits.
_PROPORTIONS = (
    (r"cls_attention_sum|metric", 0.5),
    (r"(stage\d+_)?scores_\d+", 0.05),
    (r"loss|crops_\d+|merged(_\d+)?", 0.1),
    (r"grad:.*|attention_second_last", 0.2),
    (r"sum|sum_of_squares", 500),
)
_RELATIVE = r"grad_norm:.*"
# Norms below this are compared as if they were this large: their own noise is absolute.
_SMALLEST_NORM = 1e-2
# Float quantities that are only defined where a recorded mask is True.
_MASKED_BY = {"inputs_embeds": "prepared_mask", "logits": "final_mask"}


@dataclass(frozen=True)
class Measurement:
    """One quantity of a case.

    Attributes:
        name: name in the case.
        exact: whether it must be equal.
        error: largest absolute (of norms: relative) difference; of exact ones, how many elements differ; infinite
            where the two cannot be compared.
        accepted: largest error that passes.
        detail: why they cannot be compared, or empty.
        excused: reason of a deviation from the published program that explains a difference, or empty.
    """

    name: str
    exact: bool
    error: float
    accepted: float
    detail: str = ""
    excused: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the error is accepted."""
        return self.error <= self.accepted

    @property
    def passes(self) -> bool:
        """Whether it agrees or differs by design."""
        return self.agrees or bool(self.excused)

    @property
    def share(self) -> float:
        """Error as a share of what is accepted."""
        if self.accepted == 0:
            return 0.0 if self.error == 0 else math.inf
        return self.error / self.accepted


def compare(
    measured: Mapping[str, Tensor | None],
    recorded: Mapping[str, Tensor],
    tolerance: float = DEFAULT_TOLERANCE,
    deviations: Iterable[Deviation] = (),
) -> tuple[list[Measurement], list[str]]:
    """Compare everything recorded.

    Args:
        measured: None where a quantity was not needed and so not computed (scores of a drop that keeps nothing).
        recorded: recorded tensors by the same names.
        tolerance: tolerance of hidden states and logits; that of other quantities is in proportion.
        deviations: quantities that may differ, and why.

    Returns:
        the measurements, and the names of what was not computed.
    """
    excusing = [deviation for deviation in deviations if deviation.excuses]
    found: list[Measurement] = []
    skipped: list[str] = []
    for name, truth in recorded.items():
        if name in measured and measured[name] is None:
            skipped.append(name)
            continue
        mask = recorded.get(_MASKED_BY.get(name, ""))
        excuse = next((entry.reason for entry in excusing if re.fullmatch(entry.excuses, name)), "")
        found.append(_measure(name, measured.get(name), truth, mask, tolerance, excuse))
    return found, skipped


def _measure(
    name: str, value: Tensor | None, truth: Tensor, mask: Tensor | None, tolerance: float, excused: str
) -> Measurement:
    exact = not truth.is_floating_point()
    accepted = (
        0.0
        if exact
        else tolerance * next((factor for pattern, factor in _PROPORTIONS if re.fullmatch(pattern, name)), 1.0)
    )
    if value is None:
        return Measurement(name, exact, math.inf, accepted, "was recorded, but is not computed here", excused)
    value, truth = value.detach().cpu(), truth.cpu()
    if value.shape != truth.shape:
        detail = f"has shape {list(value.shape)}, but {list(truth.shape)} was recorded"
        return Measurement(name, exact, math.inf, accepted, detail, excused)
    error = _difference(name, value, truth, mask, exact)
    if math.isnan(error):
        return Measurement(name, exact, math.inf, accepted, "holds numbers that are not finite", excused)
    return Measurement(name, exact, error, accepted, "", excused)


def _difference(name: str, value: Tensor, truth: Tensor, mask: Tensor | None, exact: bool) -> float:
    if exact:
        kind = torch.float64 if value.is_floating_point() else torch.int64  # a measured 3.7 is no recorded 3
        return float((value.to(kind) != truth.to(kind)).sum())
    difference = (value.double() - truth.double()).abs()
    if mask is not None and mask.shape == difference.shape[: mask.dim()]:
        difference = difference[mask.bool()]
    if re.fullmatch(_RELATIVE, name):
        difference = difference / truth.double().abs().clamp(min=_SMALLEST_NORM)
    return float(difference.max()) if difference.numel() else 0.0


def largest(measurements: Iterable[Measurement]) -> Measurement | None:
    """The float quantity nearest to (or farthest beyond) its accepted error, excused ones aside."""
    floats = [entry for entry in measurements if not entry.exact and (entry.agrees or not entry.excused)]
    return max(floats, key=lambda entry: entry.share, default=None)
