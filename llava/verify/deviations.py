"""Inputs on which the published program goes wrong: what may differ there, and why.

Each is recognised from the inputs alone. Whatever is not excused must agree.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llava.compression import CompressionConfig
from llava.constants import IGNORE_INDEX
from llava.verify.case import Case
from llava.verify.case_settings import Deviation
from llava.verify.voters import CasePrompt, read_idxs

_RESULTS = r"hidden_states|logits|loss|grad.*|new_tokens|step_logits"
_COUNTED = r"visual_tokens_next|stage\d+_count_\d+|attention_mask|position_ids|labels|final_.*|kv_.*|last_position.*"


def _ranking(row: str = r"\d+", stage: str = r"\d+") -> str:
    """Quantities that depend on how visual tokens were ranked."""
    return rf"(stage{stage}_)?(scores|kept|kept_global)_{row}|{_RESULTS}"


def of_prompt(case: Case, prompt: CasePrompt, compression: CompressionConfig, per_image: int) -> list[Deviation]:
    """Deviations of a `full` or `generate` case; `per_image` visual tokens enter the decoder for each image."""
    labels = None if prompt.labels is None else prompt.labels.masked_fill(~prompt.valid.bool(), IGNORE_INDEX)
    found = of_loss(labels, "loss|grad.*") if "loss" in case.outputs else []
    if compression.t2v is None:
        return found
    images = prompt.is_image.sum(dim=1)
    pruned = (images > 0) & ~prompt.left_alone
    found += _of_voters(case, pruned, prompt.voters, prompt.salient, prompt.is_image)
    found += _of_padding(case, prompt.valid, bool(pruned.any()))
    if int(images.max()) > 1:
        reason = "several images in a row: the published T2V prunes the first only and lets the others vote"
        found.append(Deviation(reason, rf"{_ranking()}|{_COUNTED}"))
    if case.kind == "generate" and not bool(images.any()) and "pixels_u8" in case.inputs:
        reason = "text with a dummy image: published decoding subtracts tokens that were never dropped from positions"
        found.append(Deviation(reason, "new_tokens|step_logits|last_position_per_layer"))
    lengths = prompt.valid.sum(dim=1) + images * (per_image - 1)
    one_length = bool((lengths == lengths[0]).all())
    if case.kind == "full" and one_length and bool(pruned.any()) and not bool(pruned.all()):
        reason = "rows of one length, some not pruned: the published program loses the padding mask at the first drop"
        found.append(Deviation(reason, _ranking(stage="[1-9]\\d*") + "|final_mask"))
    return found


def of_stage(case: Case, pruned: Tensor, voters: Tensor, is_visual: Tensor) -> list[Deviation]:
    """Deviations of a `t2v_stage` case; bool [B] rows that are pruned, bool [B, L] voters and visual tokens."""
    salient = bool(case.settings.get("use_salient_idxs"))
    found = list(_of_voters(case, pruned, voters, salient, is_visual))
    return found + list(_of_padding(case, case.inputs["attention_mask"].bool(), bool(pruned.any())))


def _of_voters(case: Case, pruned: Tensor, voters: Tensor, salient: bool, is_visual: Tensor) -> Iterator[Deviation]:
    for row in torch.nonzero(pruned & ~voters.any(dim=1)).flatten().tolist():
        reason = f"row {row} has nobody to vote: the published ranking is NaN there, here its last token votes"
        yield Deviation(reason, _ranking(str(row)))
    if not salient or case.training:
        return
    idxs = read_idxs(case, len(pruned))  # [B, M], -1 where a row has fewer
    length = case.inputs["input_ids" if "input_ids" in case.inputs else "attention_mask"].shape[1]
    first = torch.where(is_visual.any(dim=1), is_visual.int().argmax(dim=1), length)  # [B]
    separately = bool(case.settings.get("rows_run_separately"))
    stray = ((idxs >= 0) | (not separately)) & ((idxs <= first[:, None]) | (idxs >= length))
    for row in torch.nonzero(pruned & stray.any(dim=1)).flatten().tolist():
        reason = f"row {row} has salient positions that are no text behind the image: in published inference they vote"
        yield Deviation(reason, _ranking(str(row)))
    if len(pruned) > 1 and not separately:
        reason = "salient positions in a batch: published inference applies one list to every row"
        yield Deviation(reason, _ranking())


def _of_padding(case: Case, valid: Tensor, any_pruned: bool) -> Iterator[Deviation]:
    """Padding votes in published inference; recorded cases avoid it by running rows on their own."""
    alone = case.settings.get("rows_run_separately") or case.training
    if any_pruned and not alone and not bool(valid.all()):
        yield Deviation("padded rows in inference: padding votes in the published program", _ranking())


def of_loss(labels: Tensor | None, names: str = "loss") -> list[Deviation]:
    """Deviation of the quantities `names` of a batch with the labels int64 [B, L], none of which is a target."""
    if labels is None or bool((labels[:, 1:] != IGNORE_INDEX).any()):
        return []
    return [Deviation("nothing is labelled: the published loss is NaN, here it is 0", names)]
