"""Dimensions of language models and vision towers, and the FLOPs that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava.common.shown import shown

_WITH_HEAD_NORMS = ("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text")
"""`model_type` of the language models whose queries and keys have norms of their own."""


@dataclass(frozen=True)
class DecoderShape:
    """Dimensions of a Llama-like language model.

    Attributes:
        layers, width, heads, kv_heads, head_dim, vocab: as in transformers.
        mlp: width inside the MLP; of a mixture of experts inside all that one token goes through together.
        head_norms: whether queries and keys have norms of their own.
        experts, active: experts of a layer, and how many of them a token goes through; 0 where layers have one MLP.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    head_norms: bool = False
    experts: int = 0
    active: int = 0

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Read the dimensions from a transformers configuration of a Llama-like model.

        Raises:
            ValueError: if heads do not divide the width, only some layers hold a mixture of experts, one is shared, or
                it does not say how many of them a token goes through.
        """
        heads, head_dim = config.num_attention_heads, getattr(config, "head_dim", None)
        if not head_dim and config.hidden_size % heads:
            raise ValueError(
                f"The language model has a hidden_size of {config.hidden_size}, which its num_attention_heads {heads} "
                "do not divide; correct one of the two in its configuration, or give a head_dim."
            )
        experts, active = _experts_of(config)
        of_expert = getattr(config, "moe_intermediate_size", None) or config.intermediate_size  # the latter in Mixtral
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=head_dim or config.hidden_size // heads,
            mlp=active * of_expert if experts else config.intermediate_size,
            vocab=config.vocab_size,
            head_norms=getattr(config, "model_type", None) in _WITH_HEAD_NORMS,
            experts=experts,
            active=active,
        )

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer without its norms; of a mixture those of all experts, and the router's."""
        return self.passed_parameters + 3 * self.width * self.mlp * (self.experts - self.active) // max(self.active, 1)

    @property
    def passed_parameters(self) -> int:
        """Weights of one layer without its norms that one token is multiplied by."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.width * self.mlp + self.width * self.experts

    def layer_flops(self, tokens: int) -> int:
        """Forward FLOPs of one layer over a sequence."""
        return 2 * self.passed_parameters * tokens + 2 * self.heads * self.head_dim * tokens**2


def _experts_of(config: Any) -> tuple[int, int]:
    """Experts of a layer, and how many a token goes through, by a configuration; 0 and 0 where there are none."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    if not experts:
        return 0, 0
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        raise ValueError(
            "Only some layers of this language model hold a mixture of experts (mlp_only_layers or decoder_sparse_step "
            "in its configuration); costs are known of models whose layers are alike."
        )
    if getattr(config, "shared_expert_intermediate_size", None) or getattr(config, "n_shared_experts", None):
        raise ValueError(
            "Every token goes through a shared expert of this language model (shared_expert_intermediate_size or "
            "n_shared_experts in its configuration); costs are known of mixtures without."
        )
    active = getattr(config, "num_experts_per_tok", None)
    if not isinstance(active, int) or not isinstance(experts, int) or not 0 < active <= experts:
        raise ValueError(
            f"The language model has {shown(experts)} experts a layer, and num_experts_per_tok is {shown(active)}; it "
            "must be a whole number from 1 to that of the experts."
        )
    return experts, active


@dataclass(frozen=True)
class VisionShape:
    """Dimensions of a vision tower run to its selected layer.

    Attributes:
        layers: that are run.
        width, mlp: width of the tokens and inside the MLP of two maps (or what makes as many weights).
        patches: number of patches of one image, without the CLS token; 0 where images differ in size.
        patch_values: numbers of a patch.
        has_cls: whether a CLS token joins the patches.
        windowed: number of those layers that attend within windows only.
        window: tokens of a window.
        clip: frames that every layer also attends over, at each place by itself, with maps of its own; 0 without.
    """

    layers: int
    width: int
    mlp: int
    patches: int
    patch_values: int
    has_cls: bool = True
    windowed: int = 0
    window: int = 0
    clip: int = 0

    @classmethod
    def of(cls, config: Any, select_layer: int = -2) -> VisionShape:
        """Read the dimensions from a CLIP vision configuration; `select_layer` indexes its hidden states.

        Raises:
            ValueError: if it is not the number of one of them.
        """
        layers = config.num_hidden_layers
        if not isinstance(select_layer, int) or not -layers - 1 <= select_layer <= layers:
            raise ValueError(
                f"The vision tower gives the features of layer {shown(select_layer)}; costs are known of one of "
                f"its {layers} layers, a whole number from {-layers - 1} to {layers}."
            )
        return cls(
            layers=select_layer % (layers + 1),
            width=config.hidden_size,
            mlp=config.intermediate_size,
            patches=(config.image_size // config.patch_size) ** 2,
            patch_values=3 * config.patch_size**2,
        )

    @property
    def tokens(self) -> int:
        """Tokens the tower computes, CLS included."""
        return self.patches + self.has_cls

    def flops(self, tokens: int | None = None, windows: Sequence[int] | None = None) -> int:
        """Forward FLOPs for one image (or crop, or frame).

        Args:
            tokens: that the tower computes for it, CLS included; None where all images have as many.
            windows: tokens of each of its windows; None takes all for whole ones.
        """
        tokens = self.tokens if tokens is None else tokens
        weights = (8 if self.clip else 4) * self.width**2 + 2 * self.width * self.mlp
        inside = tokens * min(tokens, self.window) if windows is None else sum(window**2 for window in windows)
        seen = (self.layers - self.windowed) * tokens**2 + self.windowed * inside + self.layers * tokens * self.clip
        attention = 4 * self.width * seen
        patches = tokens - self.has_cls
        return self.layers * 2 * weights * tokens + attention + 2 * self.patch_values * self.width * patches


CLIP_L_336 = VisionShape(layers=23, width=1024, mlp=4096, patches=576, patch_values=588)


def linear_maps(decoder: DecoderShape) -> tuple[tuple[int, int], ...]:
    """Inputs and outputs of one layer's maps, in the order q, k, v, o, gate, up, down.

    Experts are none of them: all of a layer are one tensor, which adapters and bitsandbytes leave as it is.
    """
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    width, mlp = decoder.width, decoder.mlp
    attention = (width, queries), (width, keys), (width, keys), (queries, width)
    return attention if decoder.experts else (*attention, (width, mlp), (width, mlp), (mlp, width))
