"""Computed cost of a budget: visual tokens that each decoder layer sees, FLOPs, and bytes of the KV cache.

FLOPs count a multiply-add as two and causal attention once (half of the full square). Scoring is not counted: one
key projection and a few query rows at each drop, under 1 % of a prefill. Whichever layer scores (`t2v.scored_by`), it
computes them once more: the layer in front of the drop, too, gives no attention weights unless its kernel is eager.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from llava.compression.config import CompressionConfig, T2VConfig
from llava.cost.dimensions import CLIP_L_336, DecoderShape
from llava.cost.seen_media import Vision, seen


def visual_tokens_per_layer(
    config: CompressionConfig, num_layers: int, vision: Vision = CLIP_L_336, images: int = 1
) -> tuple[int, ...]:
    """Visual tokens of one sample that each decoder layer sees.

    Args:
        config: the budget.
        num_layers: number of decoder layers.
        vision: what it shows.
        images: how many of them.

    Raises:
        ValueError: if the configuration does not fit the tower or the number of layers.
    """
    return tokens_per_layer(config.t2v, images * seen(vision).visual_tokens(config.v2v), num_layers)


def tokens_per_layer(t2v: T2VConfig | None, entered: int, num_layers: int) -> tuple[int, ...]:
    """Visual tokens that each decoder layer sees of a row into which `entered` came, whatever they are of.

    Raises:
        ValueError: if a drop would come behind the last layer.
    """
    if t2v is None:
        return (entered,) * num_layers
    t2v.check_depth(num_layers)
    alive, tokens = entered, []
    for layer in range(num_layers):
        if layer in t2v.layers:
            alive = t2v.kept(t2v.layers.index(layer), entered)
        tokens.append(alive)
    return tuple(tokens)


def average_visual_tokens(tokens: Sequence[int]) -> float:
    """Mean over layers of the visual tokens a layer sees: the budget that papers compare at."""
    return sum(tokens) / len(tokens)


def prefill_flops(
    tokens: Sequence[int], text_tokens: int, decoder: DecoderShape, vision: Vision = CLIP_L_336, images: int = 1
) -> int:
    """FLOPs from pixels to the logits of the first answer token.

    Args:
        tokens: visual tokens per layer, as `visual_tokens_per_layer` gives them.
        text_tokens: length of the prompt without its images.
        decoder, vision: dimensions; of a `VisionShape` the projector is LLaVA's two-layer MLP.
        images: media of the sample, of the kind of `vision`.
    """
    layers = sum(decoder.layer_flops(text_tokens + count) for count in tokens)
    projector, tower = _outside(tokens[0], decoder, vision, images)
    return layers + 2 * decoder.width * decoder.vocab + projector + tower


def training_passes(trains_language_model: bool, activation_checkpointing: bool) -> int:
    """Forward-sized passes through a decoder layer in one training step.

    Forward and the gradient of the layer's input always; the gradient of its weights if they are trained; a second
    forward if activations were not kept. So 4 for full fine-tuning with checkpointing; 3 without it, or with it and a
    frozen language model (LoRA, projector alone); 2 for a frozen one without it.
    """
    return 2 + trains_language_model + activation_checkpointing


def training_flops(
    tokens: Sequence[int],
    text_tokens: int,
    decoder: DecoderShape,
    vision: Vision = CLIP_L_336,
    images: int = 1,
    passes: int = 4,
) -> int:
    """FLOPs of one training step on one sample, the tower frozen.

    Args:
        tokens, text_tokens, decoder, vision, images: as in `prefill_flops`.
        passes: forward-sized passes through a layer, of `training_passes`.
    """
    layers = passes * sum(decoder.layer_flops(text_tokens + count) for count in tokens)
    head = 3 * 2 * decoder.width * decoder.vocab * (text_tokens + tokens[-1])
    projector, tower = _outside(tokens[0], decoder, vision, images)
    return layers + head + 3 * projector + tower


def kv_bytes(tokens: Sequence[int], text_tokens: int, decoder: DecoderShape, bytes_per_value: int = 2) -> int:
    """Bytes of the KV cache after a prompt of `text_tokens` and the visual tokens that each layer sees."""
    per_token = 2 * decoder.kv_heads * decoder.head_dim * bytes_per_value
    return per_token * sum(text_tokens + count for count in tokens)


def _outside(entered: int, decoder: DecoderShape, vision: Vision, images: int) -> tuple[int, int]:
    """Forward FLOPs of projector and tower for `images` media, of which `entered` tokens reach the decoder."""
    if images == 0:
        return 0, 0
    medium = seen(vision)
    return images * medium.projector_flops(entered // images, decoder.width), images * medium.flops()


def describe(tokens: Sequence[int]) -> str:
    """Visual tokens by range of layers, as text such as `0-15: 307, 16-23: 153, 24-31: 0`."""
    parts, start = [], 0
    for kept, run in groupby(tokens):
        length = len(list(run))
        parts.append(f"{start}-{start + length - 1}: {kept}")
        start += length
    return ", ".join(parts)
