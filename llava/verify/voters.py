"""Who votes in a recorded case, by the published rules, and which rows those rules leave alone.

Training: tokens behind the image without a label. Inference: all tokens behind the image, answers included.
Where salient positions were given: these, in training only those among the former.
Shapes: B rows, T positions of the prompt, L of the spliced sequence, S salient positions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from llava.compression import QueryRole, TokenLayout
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.verify.case import Case, UnreadableCaseError


@dataclasses.dataclass(frozen=True)
class CasePrompt:
    """The prompt of a `full` or `generate` case.

    Attributes:
        ids: int64 [B, T].
        valid: bool [B, T].
        is_image: bool [B, T], placeholders.
        labels: int64 [B, T] or None.
        voters: bool [B, T], who votes by the published rules; nobody in a row without image.
        left_alone: bool [B], rows that training does not prune for want of a label.
        salient: whether it is recorded salient positions that vote.
    """

    ids: Tensor
    valid: Tensor
    is_image: Tensor
    labels: Tensor | None
    voters: Tensor
    left_alone: Tensor
    salient: bool

    @property
    def query_mask(self) -> Tensor:
        """int64 [B, T] that lets exactly `voters` vote, by the flag that the configuration asks for."""
        return self.voters.long() * int(QueryRole.SALIENT if self.salient else QueryRole.INSTRUCTION)


def read_prompt(case: Case, salient: bool) -> CasePrompt:
    """The prompt, on the host.

    Raises:
        UnreadableCaseError: if salient positions are asked for but not recorded.
    """
    ids = case.inputs["input_ids"].long()
    mask = case.inputs.get("attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    labels = None if "labels" not in case.inputs else case.inputs["labels"].long()
    is_image = (ids == IMAGE_TOKEN_INDEX) & valid
    behind = (is_image.long().cumsum(dim=1) > 0) & ~is_image & valid
    salient_voters = salient_positions(case, ids.shape) if salient else None
    voters = choose_voters(behind, labels, case.training, salient_voters)
    return CasePrompt(ids, valid, is_image, labels, voters, left_alone(valid, labels, case.training), salient)


def choose_voters(behind: Tensor, labels: Tensor | None, training: bool, salient: Tensor | None) -> Tensor:
    """bool, shaped like `behind` (tokens behind the image): the voters of each row.

    Args:
        labels: labels of the same shape, read in training only.
        salient: bool, the salient positions; None where none were given.
    """
    voters = behind
    if training and labels is not None:
        voters = voters & (labels == IGNORE_INDEX)
    return voters if salient is None else voters & salient


def left_alone(valid: Tensor, labels: Tensor | None, training: bool) -> Tensor:
    """bool [B]: rows that are not pruned although they may hold an image (training, no labelled token)."""
    if not training:
        return torch.zeros(len(valid), dtype=torch.bool)
    if labels is None:
        return torch.ones(len(valid), dtype=torch.bool)
    return ~((labels != IGNORE_INDEX) & valid).any(dim=1)


def salient_positions(case: Case, shape: torch.Size, shift: Tensor | None = None) -> Tensor:
    """bool of `shape` with the recorded `idxs` marked; fillers (negative, NaN) and numbers out of range are not.

    Args:
        shape: [B, T] or [B, L].
        shift: int64 [B], added to every position, such as the visual tokens that stand where a placeholder stood.
    """
    index = read_idxs(case, shape[0])
    moved = index if shift is None else index + shift[:, None]
    real = (index >= 0) & (moved >= 0) & (moved < shape[1])
    counts = torch.zeros(shape, dtype=torch.long)
    return counts.scatter_add_(1, moved.clamp(0, shape[1] - 1), real.long()) > 0


def read_idxs(case: Case, rows: int) -> Tensor:
    """int64 [B, S] salient positions, -1 for fillers of any kind.

    Raises:
        UnreadableCaseError: if they are missing or not one list for each row.
    """
    idxs = case.inputs.get("idxs")
    if idxs is None:
        raise UnreadableCaseError("use_salient_idxs is true in case.json, but inputs.safetensors has no 'idxs'.")
    idxs = idxs[None] if idxs.dim() == 1 else idxs
    if idxs.dim() != 2 or len(idxs) != rows:
        raise UnreadableCaseError(f"'idxs' has shape {list(idxs.shape)}; it needs one list for each of {rows} rows.")
    return torch.nan_to_num(idxs.double(), nan=-1.0).clamp(-1, 2**31).long()


def leave_alone(layout: TokenLayout, rows: Tensor) -> TokenLayout:
    """The same layout with the visual tokens of some rows (bool [B], on the host) taken for text."""
    if not bool(rows.any()):
        return layout
    column = rows.to(layout.valid.device)[:, None]
    alone = rows.tolist()

    def zeroed(counts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(0 if skip else count for count, skip in zip(counts, alone, strict=True))

    return dataclasses.replace(
        layout,
        image=layout.image.masked_fill(column, -1),
        visual_index=layout.visual_index.masked_fill(column, -1),
        vote=layout.vote & ~column,
        visual=zeroed(layout.visual),
        entered=zeroed(layout.entered),
    )


def match_images(is_image: Tensor, images: Tensor | None) -> Tensor | None:
    """The images that placeholders stand for, in reading order; a row without placeholder may bring a dummy.

    Raises:
        UnreadableCaseError: if there are fewer images than placeholders.
    """
    per_row = is_image.sum(dim=1).tolist()
    placeholders = sum(per_row)
    given = 0 if images is None else len(images)
    if given < placeholders:
        raise UnreadableCaseError(f"The prompts hold {placeholders} placeholders, but there are {given} images.")
    if images is None or placeholders == 0 or given == placeholders:
        return images
    with_dummies = given >= placeholders + per_row.count(0)
    used: list[int] = []
    at = 0
    for count in per_row:
        used += range(at, at + count)
        at += count or int(with_dummies)
    return images[used]
