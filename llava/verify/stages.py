"""Kept tokens, counts and scores of the stages of a whole model, under the names of the recorded cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llava.compression import TokenLayout
from llava.verify.case import Case, UnreadableCaseError
from llava.verify.case_values import Measured


def measure_stages(layouts: Sequence[TokenLayout], scores: Sequence[Tensor | None]) -> Measured:
    """Kept tokens (within the stage and among all that entered), counts and scores of every pruned row and stage.

    Args:
        layouts: what each stage of the decoder worked on, one more than there were drops.
        scores: float32 [B, L] each drop was ranked by, None where it kept everything or nothing.
    """
    measured: Measured = {}
    for stage, (before, after, ranking) in enumerate(zip(layouts[:-1], layouts[1:], scores, strict=True)):
        for row in (row for row, entered in enumerate(before.entered) if entered):
            present = before.visual_index[row][before.is_visual[row]]
            kept = after.visual_index[row][after.is_visual[row]]
            name = f"stage{stage}_{{}}_{row}"
            measured[name.format("kept_global")] = kept
            measured[name.format("kept")] = torch.searchsorted(present, kept)
            measured[name.format("count")] = torch.tensor(after.visual[row])
            measured[name.format("scores")] = None if ranking is None else ranking[row][before.is_visual[row]]
    return measured


def recorded_counts(case: Case) -> dict[str, Tensor]:
    """`visual_tokens_after_stage` of `case.json`, one number for each pruned row and stage."""
    stages: Any = case.settings.get("visual_tokens_after_stage") or []
    try:
        return {
            f"stage{stage}_count_{int(row)}": torch.tensor(int(count))
            for stage, rows in enumerate(stages)
            for row, count in rows.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise UnreadableCaseError(f"visual_tokens_after_stage is {stages!r} in case.json: {error}.") from error
