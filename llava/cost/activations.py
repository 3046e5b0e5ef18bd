"""Bytes that a training step keeps for its backward pass, by arithmetic.

The formulas follow what autograd saves in transformers' Llama with a fused attention kernel (FlashAttention or SDPA's;
none keeps the attention map) and in LLaVA's projector and loss. They go further than those of Korthikanti et al. 2022
("Reducing Activation Recomputation in Large Transformer Models", section 4), which describe GPT's layer: no dropout
here, three maps in the MLP, and a norm that computes in float32.

Choosing tokens is not counted: V2V and T2V score without a graph and leave index tensors. For one voter a row
(`queries: last`) that is less than any layer; with every instruction token voting it is bounded by
`llava.compression.t2v`, which works in chunks.

Letters: D width, F width of the MLP (of all experts that a token goes through), A their number, E that of all experts,
q = heads x head_dim, k = key heads x head_dim, H heads, V vocabulary, R LoRA rank, c bytes of a value in the linear
maps, s bytes of a value in the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from llava.cost.recipes import Trained
from llava.cost.seen_media import seen
from llava.cost.shapes import DecoderShape, ModelShape, linear_maps

FLOAT32 = 4
LOGITS_AT_ONCE = 2**25
"""Most logits that the loss has at a time: 128 MiB in float32, and three times that at its peak."""


@dataclass(frozen=True)
class Precision:
    """Bytes of a value.

    Attributes:
        compute: bytes of a value in the linear maps and in attention (c).
        stream: bytes of a value in the residual stream (s): 4 under autocast while the embedding is trained in
            float32, else c.
        mask: bytes of an entry of a dropout mask; 1 on CUDA and ROCm, c on the CPU.
    """

    compute: int = 2
    stream: int = 2
    mask: int = 1


@dataclass(frozen=True)
class DeviceBatch:
    """What one device computes at once; all rows are as long as the longest.

    Attributes:
        rows: number of rows.
        text: text tokens of a row.
        visual: visual tokens of a row in each decoder layer.
        supervised: targets of a row.
    """

    rows: int
    text: int
    visual: tuple[int, ...]
    supervised: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """Positions of the whole batch in each layer."""
        return tuple(self.rows * (self.text + count) for count in self.visual)


@dataclass(frozen=True)
class Adapters:
    """What LoRA adds to a layer; rank 0 means no adapters."""

    rank: int = 0
    dropout: float = 0.0


def layer_bytes(decoder: DecoderShape, trained: Trained, adapters: Adapters, precision: Precision) -> int:
    """Saved bytes of one decoder layer for one token, without activation checkpointing.

    - both norms: their input in float32 and one root, 2 (4 D + 4); where their weights are trained, also the
      normalised value, 2 s D
    - norms of queries and keys, where there are such: as much for each of their values
    - attention: queries, keys, values and output, c (2 q + 2 k), and the softmax's float32 normaliser, 4 H
    - MLP: gate, its activation and the other branch, 3 c F
    - a mixture of experts in its place: that of the experts that a token goes through, and see `_routing`
    - inputs of the linear maps, only where something in them is trained: see `_linear_inputs`
    """
    width, mlp = decoder.width, decoder.mlp
    queries, keys = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    norms = 2 * (FLOAT32 * width + FLOAT32)
    if trained == "all":
        norms += 2 * precision.stream * width
    if decoder.head_norms:
        norms += FLOAT32 * (queries + keys + decoder.heads + decoder.kv_heads)
        norms += precision.compute * (queries + keys) if trained == "all" else 0
    attention = precision.compute * (2 * queries + 2 * keys) + FLOAT32 * decoder.heads
    branches = 3 * precision.compute * mlp + _routing(decoder, precision)
    return norms + attention + branches + _linear_inputs(decoder, trained, adapters, precision)


def _routing(decoder: DecoderShape, precision: Precision) -> int:
    """What sending a token to A experts keeps, by transformers' grouped matrix products; nothing without experts.

    For each of the A what the expert gives and its share, c (D + 1), four indices of 8 bytes and two steps of the share
    in float32; the probabilities of all E experts in float32.
    """
    of_expert = precision.compute * (decoder.width + 1) + 4 * 8 + 2 * FLOAT32
    return decoder.active * of_expert + FLOAT32 * decoder.experts


def _linear_inputs(decoder: DecoderShape, trained: Trained, adapters: Adapters, precision: Precision) -> int:
    """Inputs that the gradients of weights need, for one token.

    - full training: one tensor for q, k and v and one for gate and up, 2 c D, and that of down, c F; o reads the
      attention's output, which is saved already. With a float32 stream autocast casts it once for every map: 5 c D
    - frozen without adapters: none
    - experts, where they are trained: a copy of the input for each that the token goes to, c A D
    - LoRA: c R for each map; its input as dropout leaves it with the mask, (c + mask) for each input value of each
      map, since every adapter draws its own; without dropout, as in full training
    """
    width, compute = decoder.width, precision.compute
    shared = compute * (2 * width + decoder.mlp + decoder.active * width)
    if trained == "all" and decoder.experts:
        return shared + (2 * compute * width if precision.stream != compute else 0)  # cast once for each of q, k and v
    if trained == "all":
        return shared if precision.stream == compute else compute * (5 * width + decoder.mlp)
    if trained == "projector":
        return 0
    maps = linear_maps(decoder)
    hidden = len(maps) * compute * adapters.rank
    if adapters.dropout == 0:
        return hidden + (compute * width if decoder.experts else shared)
    return hidden + (compute + precision.mask) * sum(inputs for inputs, _ in maps)


def outside_bytes(shape: ModelShape, batch: DeviceBatch, precision: Precision) -> int:
    """Saved bytes outside the layers that last as long as theirs.

    - projector, trained in every recipe: input of each map and of each GELU, for each visual token
    - rotary angles, see `rotary_bytes`

    A drop selects by index, and keeps nothing but that.
    """
    width, medium = shape.decoder.width, seen(shape.vision)
    tokens, inputs = batch.visual[0], [medium.tower.width, *[width] * (shape.projector_layers - 1)]
    if medium.projector is not None:
        inputs = [values for values, _ in medium.projector]
    if medium.projects_all and tokens:
        tokens = round(medium.units * medium.found * medium.pooled)
    widths = sum(inputs[:1]) + 2 * sum(inputs[1:]) if shape.projector_layers else 0
    projector = batch.rows * tokens * precision.compute * widths
    return projector + rotary_bytes(shape.decoder, batch, precision)


def rotary_bytes(decoder: DecoderShape, batch: DeviceBatch, precision: Precision) -> int:
    """Cosine and sine of the positions, 2 s head_dim for each token of each stage; all layers of a stage share them."""
    return 2 * precision.stream * decoder.head_dim * sum(_stages(batch))


def _stages(batch: DeviceBatch) -> list[int]:
    """Positions of the batch in each stage between two drops."""
    return [tokens for tokens, _ in groupby(batch.tokens)]


def positions_at_once(vocabulary: int) -> int:
    """Positions whose logits the loss has at a time; more go through the head chunk by chunk."""
    return max(1, LOGITS_AT_ONCE // vocabulary)


def head_bytes(decoder: DecoderShape, batch: DeviceBatch, trained: Trained, precision: Precision) -> int:
    """Saved bytes of the final norm and the loss, gone before the last layer's backward pass begins.

    - final norm: as in a layer, on what the last layer gives
    - for each target: the row that the head is applied to, c D, and the log-softmax in float32, 4 V
    - with more targets than `positions_at_once`, instead: the gradient of each target's row, s D, and that of the
      head's weight in float32, 4 V D, where it is trained
    """
    norm = FLOAT32 * decoder.width + FLOAT32 + (precision.stream * decoder.width if trained == "all" else 0)
    targets = batch.rows * batch.supervised
    if targets > positions_at_once(decoder.vocab):
        loss = precision.stream * decoder.width * targets + _head_gradient(decoder, trained)
    else:
        loss = (precision.compute * decoder.width + FLOAT32 * decoder.vocab) * targets
    return norm * batch.tokens[-1] + loss


def _head_gradient(decoder: DecoderShape, trained: Trained) -> int:
    return FLOAT32 * decoder.vocab * decoder.width if trained == "all" else 0


def head_peak(decoder: DecoderShape, batch: DeviceBatch, trained: Trained, precision: Precision) -> int:
    """What the final norm and the loss take at their peak, the saved bytes included.

    Either the loss's backward pass, which adds its gradient and that of the logits in float32, 8 V a target; or the
    final norm's, with five float32 copies of the stream, 20 D a token, after the loss is gone. In chunks:
    `_chunk_peak` instead of the former.
    """
    saved = head_bytes(decoder, batch, trained, precision)
    targets, chunk = batch.rows * batch.supervised, positions_at_once(decoder.vocab)
    norm = 5 * FLOAT32 * decoder.width * batch.tokens[-1]
    if targets <= chunk:
        logits = FLOAT32 * decoder.vocab * targets
        return saved + max(2 * logits, norm - logits)
    gone = _head_gradient(decoder, trained) + (precision.stream - precision.compute) * decoder.width * targets
    return saved + max(_chunk_peak(decoder, chunk, trained, precision), norm - gone)


def _chunk_peak(decoder: DecoderShape, chunk: int, trained: Trained, precision: Precision) -> int:
    """What a loss in chunks adds to what it saves.

    - log-softmax and the gradients of a chunk's logits, 12 V for each of its targets
    - where the head is trained: the weight's gradient of a chunk, c V D, the same in float32 under autocast, 4 V D, and
      the gradient of the logits, 4 V a target
    - or, in the backward pass, that of all chunks times that of the loss, 4 V D, and as the weight is stored, c V D
    """
    logits, weight = FLOAT32 * decoder.vocab * chunk, _head_gradient(decoder, trained)
    if not weight:
        return 3 * logits
    computed, autocast = weight * precision.compute // FLOAT32, precision.stream > precision.compute
    backward = weight + (computed if precision.stream < FLOAT32 else 0)
    return max(3 * logits, computed + weight * autocast + logits, backward)


def stored_layers(decoder: DecoderShape, tokens: Sequence[int], per_token: int, again: int, stream: int) -> int:
    """Bytes that all layers keep: everything, or of those that are computed again only the input, s D a token.

    Args:
        decoder: dimensions.
        tokens: positions of the batch in each layer.
        per_token: `layer_bytes`.
        again: how many of the first layers are computed again in the backward pass (checkpointing).
        stream: bytes of a value in the residual stream.
    """
    return sum(tokens[:again]) * stream * decoder.width + sum(tokens[again:]) * per_token


def backward_peak(
    decoder: DecoderShape,
    batch: DeviceBatch,
    trained: Trained,
    adapters: Adapters,
    precision: Precision,
    again: int,
) -> int:
    """Most bytes that layers, final norm and loss hold at once, what is outside of them not counted.

    The largest of these moments: the loss's backward pass, when everything is kept; and for each stage that of its
    last layer, when what the layers behind it kept is gone. A layer that is computed again then holds all of its own.

    Args:
        decoder, batch, trained, adapters, precision: as elsewhere.
        again: as in `stored_layers`.
    """
    per_token, tokens = layer_bytes(decoder, trained, adapters, precision), batch.tokens
    kept = stored_layers(decoder, tokens, per_token, again, precision.stream)
    moments = [kept + head_peak(decoder, batch, trained, precision)]
    for layer, count in enumerate(tokens):
        if layer + 1 in (again, len(tokens)) or tokens[layer + 1] != count:  # the last of its stage
            kept = stored_layers(decoder, tokens[: layer + 1], per_token, again, precision.stream)
            own = count * per_token if layer < again else 0
            moments.append(kept + own + in_flight(decoder, count, trained, precision))
    return max(moments)


def in_flight(decoder: DecoderShape, tokens: int, trained: Trained, precision: Precision) -> int:
    """What gradients add while one layer is gone through backwards, at its peak in the MLP.

    Those of the product and of both its factors, 3 c F, and of the residual stream, 2 s D; the input of the last map,
    c F, is gone by then where it was kept for the map's own gradient.
    """
    copies = 2 if trained == "all" else 3
    return tokens * (copies * precision.compute * decoder.mlp + 2 * precision.stream * decoder.width)


def trained_tower(shape: ModelShape, images: int, compute: int, checkpointing: bool) -> int:
    """Bytes that a trained tower keeps for its backward pass.

    For each token of a layer its input, c D; without checkpointing also both norms' inputs and results, queries, keys,
    values and the attention's output, and the inputs, hidden values and activations of the MLP, c (8 D + 3 F) + 8 D.
    With checkpointing one layer's are there at once.
    """
    medium = seen(shape.vision)
    tower, tokens = medium.tower, images * medium.units * medium.positions
    whole = tokens * (compute * (8 * tower.width + 3 * tower.mlp) + 2 * FLOAT32 * tower.width)
    return tokens * compute * tower.width * tower.layers + whole if checkpointing else whole * tower.layers


def tower_pass(shape: ModelShape, images: int, compute: int) -> int:
    """Peak bytes of the frozen tower, which keeps nothing: one layer's MLP.

    Residual stream, normed input, the map to the MLP and QuickGELU's two temporaries: c (2 D + 3 F) a token of the
    tower's own width. They are gone before the decoder begins.
    """
    medium = seen(shape.vision)
    tower = medium.tower
    return images * medium.units * medium.positions * compute * (2 * tower.width + 3 * tower.mlp)
