"""Kind `t2v_stage`: one ranking and drop on given hidden states.

Shapes: B rows, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava.compression import T2VConfig, TokenLayout
from llava.compression.t2v import choose_visual_tokens, gather_kept
from llava.model import LlavaLlamaForCausalLM
from llava.model.loss import labels_at
from llava.model.staged_decoder import attention_ranking
from llava.verify.case import Case, UnreadableCaseError
from llava.verify.case_settings import RefusedError
from llava.verify.case_values import Measured
from llava.verify.voters import choose_voters, left_alone, salient_positions


@dataclass(frozen=True)
class StageInput:
    """Inputs of a stage, as tensors on the host.

    Attributes:
        layout: layout of the L positions; rows that are not pruned hold no visual token.
        pruned: bool [B].
        voters: bool [B, L], by the published rules.
        is_visual: bool [B, L], also in rows that are not pruned.
        counts: visual tokens that each row keeps.
    """

    layout: TokenLayout
    pruned: Tensor
    voters: Tensor
    is_visual: Tensor
    counts: tuple[int, ...]


def read_stage(case: Case) -> StageInput:
    """The layout that the inputs of a case describe."""
    given = case.inputs
    valid, labels = given["attention_mask"].bool(), given["labels"]  # [B, L] each
    first, present = given["image_position"][:, None], given["visual_tokens_now"][:, None]  # [B, 1] each
    column = torch.arange(valid.shape[1])[None]  # [1, L]
    is_visual = (first >= 0) & (column >= first) & (column < first + present)
    behind = valid & (first >= 0) & (column >= first + present)
    salient = case.settings.get("use_salient_idxs")
    salient_voters = salient_positions(case, valid.shape, present[:, 0] - 1) if salient else None
    voters = choose_voters(behind, labels, case.training, salient_voters)
    pruned = (first[:, 0] >= 0) & ~left_alone(valid, labels, case.training)  # [B]
    visual = is_visual & pruned[:, None]
    counts = torch.where(pruned, given["visual_tokens_next"], 0).tolist()
    return StageInput(_layout(case, visual, voters & pruned[:, None]), pruned, voters, is_visual, tuple(counts))


def _layout(case: Case, visual: Tensor, vote: Tensor) -> TokenLayout:
    valid = case.inputs["attention_mask"].bool()
    nobody = visual.any(dim=1, keepdim=True) & ~vote.any(dim=1, keepdim=True)  # [B, 1]
    last = valid & (valid.long().cumsum(dim=1) == valid.sum(dim=1, keepdim=True))  # [B, L]
    vote = vote | (nobody & last)
    present = tuple(visual.sum(dim=1).tolist())
    text = TokenLayout.of_text(valid)
    return TokenLayout(
        valid=valid,
        image=visual.long() - 1,
        visual_index=torch.where(visual, visual.long().cumsum(dim=1) - 1, -1),
        vote=vote,
        positions=case.inputs["position_ids"].long(),
        lengths=text.lengths,
        visual=present,
        entered=present,
        max_votes=int(vote.sum(dim=1).max()),
        padding_side=text.padding_side,
    )


@torch.no_grad()
def replay(case: Case, model: LlavaLlamaForCausalLM, stage: StageInput) -> Measured:
    """Everything a `t2v_stage` case records, and how many tokens the configuration would keep."""
    layer = _next_layer(case, model)
    layout = stage.layout.to(model.device)
    hidden_states = case.inputs["hidden_states"].to(model.device)
    scores = attention_ranking(model.get_model(), layer, hidden_states, layout)
    keep = choose_visual_tokens(scores, layout, stage.counts)
    hidden_states, after = gather_kept(hidden_states, layout, keep, stage.counts)
    measured: Measured = {
        "hidden_states": hidden_states,
        "attention_mask": after.valid,
        "position_ids": after.positions,
        "labels": labels_at(after, case.inputs["labels"].long()),
        "visual_tokens_next": _configured_counts(case, layer, stage.pruned),
    }
    for row in torch.nonzero(stage.pruned).flatten().tolist():
        measured[f"scores_{row}"] = scores[row][layout.is_visual[row]]
        measured[f"kept_{row}"] = after.visual_index[row][after.is_visual[row]]
    return measured


def recorded(case: Case, stage: StageInput) -> dict[str, Tensor]:
    """What the case recorded, with the counts that its settings must lead to."""
    if _ratio_and_entered(case, stage.pruned) is None:
        return dict(case.outputs)
    return {**case.outputs, "visual_tokens_next": case.inputs["visual_tokens_next"][stage.pruned]}


def _next_layer(case: Case, model: LlavaLlamaForCausalLM) -> int:
    """0-based number of the layer behind the drop, which is the 1-based number of the one before it."""
    layer, depth = case.settings.get("rank_layer"), len(model.get_model().layers)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise UnreadableCaseError(f"rank_layer is {layer!r} in case.json; it must be a whole number.")
    if not 0 < layer < depth:
        raise RefusedError(f"rank_layer is {layer}, but a drop must come before the last of {depth} layers")
    return layer


def _ratio_and_entered(case: Case, pruned: Tensor) -> tuple[float, list[int]] | None:
    ratio, entered = case.settings.get("ratio_next"), case.settings.get("visual_tokens_at_input_of_model")
    if ratio is None or not isinstance(entered, list) or len(entered) != len(pruned):
        return None
    return float(ratio), [count for count, kept in zip(entered, pruned.tolist(), strict=True) if kept]


def _configured_counts(case: Case, layer: int, pruned: Tensor) -> Tensor | None:
    """int64, for each pruned row: visual tokens that a configuration with the ratio of the case keeps."""
    found = _ratio_and_entered(case, pruned)
    if found is None:
        return None
    ratio, entered = found
    t2v = T2VConfig((layer,), (ratio,))
    return torch.tensor([t2v.kept(0, count) for count in entered], dtype=torch.long)
