"""Kind `v2v`: from pixels to merged visual tokens."""

from __future__ import annotations

from typing import Any

import torch

from llava.compression import V2VConfig, merge_visual_tokens
from llava.model import LlavaLlamaForCausalLM
from llava.verify.case import Case, UnreadableCaseError
from llava.verify.case_values import Measured


@torch.no_grad()
def replay(case: Case, model: LlavaLlamaForCausalLM, v2v: V2VConfig | None) -> Measured:
    """Everything a `v2v` case records; patches are counted with CLS in front, as the case does."""
    if v2v is None:
        raise UnreadableCaseError("case.json has no v2v settings, which a case of kind v2v needs.")
    images: Any = case.images()
    tower: Any = model.get_vision_tower()
    seen = tower.encode(images.to(model.device), v2v)
    result = merge_visual_tokens(seen.features, seen.cls_attention, seen.keys, v2v, has_cls=seen.has_cls)
    plan = result.plan
    return {
        "hidden_states": seen.features,
        "cls_attention_sum": seen.cls_attention,
        "metric": seen.keys,
        "all_indices": torch.cat([plan.dominant.new_zeros(len(images), 1), plan.dominant + 1], dim=1),
        "pool_indices": plan.pool + 1,
        "anchor_indices": plan.anchors + 1,
        "merge_indices": plan.members + 1,
        "merge_assignment": plan.assignment,
        "hidden_states_save": result.tokens,
        "projected": model.get_model().mm_projector(result.tokens),
    }
