"""The loss of a mixture of experts that keeps its routers from sending all tokens to the same experts.

transformers adds it to the loss where router logits are asked for (`output_router_logits`, of a call or of the language
model's configuration). It is that of Fedus et al. 2021 ("Switch Transformers", equations 4 to 6), over the tokens of
all layers together. Here layers work on different tokens: each counts those that it works on, and no padding.

Shapes: B rows, L positions of a layer ([1, all] for [B, L] where rows are packed), E experts of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.compression.layout import TokenLayout
from llava.model.accepted_inputs import is_attention_matrix

ASKED = "output_router_logits"
"""Argument of `forward`, and field of the language model's configuration."""


@dataclass(frozen=True)
class RouterLoss:
    """What keeps the routers of a decoder in balance.

    Attributes:
        decoder: language model without head.
        layers: 0-based numbers of its layers that hold experts.
        weight: of this loss beside that of the next token.
    """

    decoder: Any
    layers: tuple[int, ...]
    weight: float

    @classmethod
    def of(cls, decoder: Any, given: Mapping[str, Any]) -> RouterLoss | None:
        """None where it is not asked for, or the decoder holds no experts.

        Args:
            decoder: language model without head.
            given: arguments of `forward` by name.
        """
        layers = experts_of(decoder) if is_asked(decoder.config, given) else ()
        if not layers:
            return None
        return cls(decoder, layers, decoder.config.router_aux_loss_coef)

    def of_logits(self, logits: Sequence[Tensor], layouts: Sequence[TokenLayout], cuts: Sequence[int]) -> Tensor:
        """The loss without its weight, as transformers computes it for tokens without padding.

        Args:
            logits: [B * L, E] of each layer with experts.
            layouts: layout of each stage.
            cuts: after how many layers each drop takes place.

        Returns:
            float32 scalar; as many as the experts that a token goes through where routers are in perfect balance.

        Raises:
            ValueError: if its gradient was lost, because layers ran without a graph, to be computed again.
        """
        from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

        self._require_graph(logits)
        config, device = self.decoder.config, logits[0].device
        of_layers = [layouts[sum(cut <= layer for cut in cuts)].valid for layer in self.layers]
        live = torch.cat([valid.flatten().to(device) for valid in of_layers])  # bool [layers * B * L]
        together = torch.cat([layer.to(device) for layer in logits])  # [layers * B * L, E]
        found: Tensor = load_balancing_loss_func((together,), config.num_experts, config.num_experts_per_tok, live)
        return found

    def _require_graph(self, logits: Sequence[Tensor]) -> None:
        if not (self.decoder.training and torch.is_grad_enabled()):
            return
        for number, layer in zip(self.layers, logits, strict=True):
            if getattr(self.decoder.layers[number], "gradient_checkpointing", False) and not layer.requires_grad:
                raise ValueError(
                    "The loss of the routers (output_router_logits) has no gradient where layers are computed again "
                    "with use_reentrant; give --activation_checkpointing_kwargs '{\"use_reentrant\": false}' (the "
                    "default), or leave output_router_logits out."
                )


def experts_of(decoder: Any) -> tuple[int, ...]:
    """0-based numbers of the layers of a language model that hold experts."""
    layers = enumerate(decoder.layers)
    return tuple(number for number, layer in layers if hasattr(getattr(layer, "mlp", None), "experts"))


def is_asked(config: Any, given: Mapping[str, Any]) -> bool:
    """Whether router logits are asked for, by a call or else by the language model's configuration."""
    asked = given.get(ASKED)
    return bool(getattr(config, ASKED, False) if asked is None else asked)


def refuse_beside_padding(config: Any, given: Mapping[str, Any]) -> None:
    """Raise ValueError where text that the stock model runs as it is would count padding in the loss of the routers.

    Args:
        config: configuration of the language model.
        given: arguments of `forward` by name; rows hold packed sequences, or the mask is a whole attention matrix.
    """
    mask = given.get("attention_mask")
    if not is_asked(config, given) or mask is None:
        return
    if is_attention_matrix(mask) or not bool(mask.bool().all()):
        raise ValueError(
            "output_router_logits is asked for, but which tokens are padding cannot be told where a row packs several "
            "sequences or attention_mask is a whole attention matrix; give each sequence a row of its own."
        )
