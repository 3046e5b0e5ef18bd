"""Running a transformers vision transformer only as far as it is needed, with what V2V scores and merges by.

Works for CLIP and its relatives (SigLIP, LanguageBind): `embeddings`, `encoder.layers` with `layer_norm1` and
`self_attn.{q_proj, k_proj, num_heads, head_dim, scale}`, and `pre_layrnorm` where there is one. A layer
that `attends_over_time` in front of that gives with its result what came out there, which V2V looks at.
Shapes: B images (or frames), N tokens (P patches, CLS in front where there is one), D width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from llava.compression.config import V2VConfig
from llava.compression.selection import without_autocast
from llava.compression.v2v import V2VResult, merge_visual_tokens
from llava.model.host_inputs import to_device

_MAX_ATTENTION_ELEMENTS = 2**28


@dataclass(frozen=True)
class TowerOutput:
    """Features of a batch of images, with what V2V scores and merges by.

    Attributes:
        features: [B, N, D], output of the selected layer.
        has_cls: whether the first of the N tokens is CLS.
        cls_attention: float32 [B, P] attention CLS pays each patch in that layer, summed over heads; or None.
        keys: [B, N, d] keys of that layer, averaged over heads; or None.
        attention: float32 [B, N, N] attention map of that layer, averaged over heads; or None.
    """

    features: Tensor
    has_cls: bool
    cls_attention: Tensor | None = None
    keys: Tensor | None = None
    attention: Tensor | None = None

    def select(self, images: Sequence[int]) -> TowerOutput:
        """What belongs to some of the images, by their numbers."""
        held = (self.features, self.cls_attention, self.keys, self.attention)
        chosen = to_device(torch.tensor(images, dtype=torch.long), self.features.device)
        features, *rest = (None if tensor is None else tensor.index_select(0, chosen) for tensor in held)
        assert features is not None
        return TowerOutput(features, self.has_cls, *rest)

    def merged(self, v2v: V2VConfig) -> V2VResult:
        """V2V on these features."""
        with record_function("llava.v2v"):
            return merge_visual_tokens(
                self.features, self.cls_attention, self.keys, v2v, self.attention, has_cls=self.has_cls
            )


def encode_images(model: Any, images: Tensor, select_layer: int, v2v: V2VConfig | None = None) -> TowerOutput:
    """Features of one hidden layer, and with `v2v` what they are scored and merged by.

    Args:
        model: transformers' vision transformer. Gradients are kept only if any of its weights is trained.
        images: [B, 3, height, width] in any data type.
        select_layer: index into the hidden states (0 is the embedding); features and scores come from this layer.
        v2v: None asks for the features alone.
    """
    weight = next(model.parameters())
    device = images.device if weight.is_meta else weight.device  # offloaded weights come to the images instead
    trainable = torch.is_grad_enabled() and any(weight.requires_grad for weight in model.parameters())
    with nullcontext() if trainable else torch.no_grad(), record_function("llava.tower"):
        layers = model.encoder.layers
        last = select_layer % (len(layers) + 1) - 1
        hidden_states = model.embeddings(images.to(device, weight.dtype))
        if hasattr(model, "pre_layrnorm"):
            hidden_states = model.pre_layrnorm(hidden_states)
        for layer in layers[:last]:
            hidden_states = layer(hidden_states, attention_mask=None)
        selected = layers[last]
        if getattr(selected, "attends_over_time", False):
            features, hidden_states = selected(hidden_states, attention_mask=None, with_mixed=True)
        else:
            features = selected(hidden_states, attention_mask=None)
    if v2v is None:
        return TowerOutput(features, has_cls(model))
    with torch.no_grad(), record_function("llava.v2v"):
        scored_by = _scored_by(selected, hidden_states.detach(), v2v, has_cls(model))
        return TowerOutput(features, has_cls(model), *scored_by)


def behind_selected(model: Any, layers: Sequence[int]) -> list[nn.Module]:
    """Modules of a vision transformer on which the hidden states of some layers do not depend; none of other kinds."""
    blocks = getattr(getattr(model, "encoder", None), "layers", None)
    if blocks is None or not layers:
        return []
    last = max(layer % (len(blocks) + 1) for layer in layers)
    ends = (getattr(model, name, None) for name in ("post_layernorm", "head"))
    return [*blocks[last:], *(end for end in ends if end is not None)]


def has_cls(model: Any) -> bool:
    """Whether the first token of a tower is CLS."""
    return hasattr(model.embeddings, "class_embedding")


def _scored_by(
    layer: Any, inputs: Tensor, v2v: V2VConfig, with_cls: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """CLS attention, head-mean keys and (only where needed) the attention map of one layer, from its input."""
    attention = layer.self_attn
    normed = layer.layer_norm1(inputs)
    keys = _heads(attention.k_proj(normed), attention)
    if not (with_cls or v2v.needs_attention_map):
        return None, keys.mean(dim=1), None
    rows = normed if v2v.needs_attention_map else normed[:, :1]
    queries = _heads(attention.q_proj(rows), attention)
    some = max(
        1, _MAX_ATTENTION_ELEMENTS // (queries[0].numel() // queries.shape[-1] * keys.shape[2])
    )  # images at once
    cls_attention, maps = [], []
    for asking, asked in zip(queries.split(some), keys.split(some), strict=True):
        with without_autocast(queries.device):
            logits = asking.float() @ asked.float().transpose(2, 3) * attention.scale
            weights = logits.softmax(dim=-1)  # [some, H, 1 or N, N]
        if with_cls:
            cls_attention.append(weights[:, :, 0, 1:].sum(dim=1))
        if v2v.needs_attention_map:
            maps.append(weights.mean(dim=1))
    of_cls, of_all = (torch.cat(parts) if parts else None for parts in (cls_attention, maps))
    return of_cls, keys.mean(dim=1), of_all


def _heads(projected: Tensor, attention: Any) -> Tensor:
    return projected.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
