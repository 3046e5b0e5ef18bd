"""A family that no package knows: what somebody who adds one writes (docs/plug-in.md), made up and small.

An image is a heap of pebbles [n, 5], of any number; the prompt has one placeholder for each pebble. There is no CLS
token, and every image brings a count of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from llava.compression import CompressionConfig, V2VConfig, merge_visual_tokens
from llava.model.plugin import CompressedModel, VisualSpan, forward_like

PLACEHOLDER = 60


class Pebbles(LlamaForCausalLM):
    """The class that exists already: a language model with an eye for pebbles."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.eye = nn.Linear(5, config.hidden_size)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pebbles: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As Llama's; `pebbles` are the heaps [n, 5] that the prompts show, in reading order."""
        if pebbles and input_ids is not None and (input_ids == PLACEHOLDER).any():
            seen = self.eye(torch.cat(list(pebbles)))
            shown = (input_ids == PLACEHOLDER)[..., None]
            inputs_embeds, input_ids = self.model.embed_tokens(input_ids).masked_scatter(shown, seen), None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **kwargs,
        )


class CompressedPebbles(CompressedModel, Pebbles):
    """The family: how heaps become visual tokens. A budget is a cap, and a pebble's size is its importance."""

    stock = Pebbles
    visual_inputs = ("pebbles",)
    forward = forward_like(Pebbles)

    @property
    def decoder(self) -> Any:
        return self.model

    def vision_towers(self) -> tuple[nn.Module, ...]:
        return ()

    def projectors(self) -> tuple[nn.Module, ...]:
        return (self.eye,)

    def pixel_inputs(self) -> tuple[str, ...]:
        return self.visual_inputs

    def has_cls(self) -> bool:
        return False

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        return {PLACEHOLDER: [self._span(heap, compression.v2v) for heap in inputs["pebbles"] or ()]}

    def _span(self, heap: Tensor, v2v: V2VConfig | None) -> VisualSpan:
        tokens = self.eye(heap)
        if v2v is None or len(heap) <= v2v.dominant + v2v.contextual:
            return VisualSpan(tokens, len(heap))
        size = heap.norm(dim=-1).float()
        merged = merge_visual_tokens(tokens[None], None, heap[None], v2v, received=size[None], has_cls=False)
        return VisualSpan(merged.tokens[0], len(heap))
