"""Runs the layers of a Llama-like decoder stage by stage, dropping visual tokens between stages.

Owns masks, positions and the drop; knows neither LLaVA nor images. A decoder is Llama-like if it has `layers` (with
`input_layernorm` and `self_attn.{q_proj, k_proj, head_dim, scaling}`), `norm`, `rotary_emb` and `config`.

Shapes: B rows, L positions, D width, V voting tokens, H query heads, G key heads, d head width. Where the layout is
packed, [1, S] stands for [B, L]: the layers see one row, and attention is told where rows begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import rotate_half
from transformers.utils.output_capturing import capture_outputs

from llava.common.own_scores import unknown_choice
from llava.compression.config import T2V_SCORED_BY, T2V_SCORES, T2VConfig
from llava.compression.layout import TokenLayout
from llava.compression.t2v import (
    attention_scores,
    choose_visual_tokens,
    control_scores,
    gather_kept,
    keep_counts,
    voting_positions,
)
from llava.model.cache_name import named
from llava.model.collectives import ranks_must_agree
from llava.model.packing import in_rows, in_stream
from llava.model.results import LlavaModelOutput
from llava.model.staged_cache import StagedCache
from llava.model.varlen_attention import borders_of


@capture_outputs
def run_stages(
    decoder: Any,
    hidden_states: Tensor,
    layout: TokenLayout,
    t2v: T2VConfig | None,
    cache: StagedCache | None = None,
    added: Sequence[Tensor] = (),
    **kwargs: Any,
) -> LlavaModelOutput:
    """Training and prefill: every layer, with a drop between stages.

    Scoring computes queries and keys itself, because no attention kernel but the eager one gives its weights. Where
    the last layer in front of a drop scores (`scored_by: before`), that is done right before this layer runs, when its
    input is at hand and, if the model is spread out or partitioned, its weights are near.

    Args:
        decoder: Llama-like model.
        hidden_states: [B, L, D] embeddings.
        layout: layout of the L positions.
        t2v: when to drop and how much; None drops nothing.
        cache: an empty cache to fill, or None.
        added: [B, L, D] each, added to the hidden states behind layer 0, 1, ...; what a token adds goes where it goes.
        kwargs: handed to every layer.

    Returns:
        hidden states [B, L', D] after the final norm, where L' counts what survived the last drop; what each stage
        worked on and was ranked by.
    """
    layouts, scores = [layout], []
    to_add = dict(enumerate(added))
    ranking: Tensor | None = None
    for stage, (first, last) in enumerate(_stage_bounds(decoder, t2v)):
        if stage > 0 and t2v is not None:
            hidden_states, layout = _on_device_of(decoder.layers[first], hidden_states, layout)
            match t2v.scored_by:
                case "after":
                    ranking = rank_visual_tokens(decoder, first, hidden_states, layout, t2v, stage - 1)
                case "before":
                    ranking = None if ranking is None else ranking.to(hidden_states.device)
                case other:
                    raise unknown_choice("t2v.scored_by", other, T2V_SCORED_BY)
            to_add = {layer: features for layer, features in to_add.items() if layer >= first}
            hidden_states, layout, to_add = _drop(hidden_states, layout, to_add, ranking, t2v, stage - 1)
            layouts.append(layout)
            scores.append(ranking)
        if cache is not None:
            cache.begin_stage(first, layout)
        if layout.is_packed:
            mask, of_stage = None, kwargs | borders_of(layout)
        else:
            mask, of_stage = _causal_mask(decoder, hidden_states, layout.attention_mask(), cache, first), kwargs
        begin = first
        if t2v is not None and t2v.scored_by == "before" and last < len(decoder.layers):
            begin = last - 1
            with record_function(f"llava.layers {first}-{last - 1}"):
                hidden_states = _run_layers(
                    decoder, first, begin, hidden_states, mask, layout.positions, cache, to_add, **of_stage
                )
            hidden_states, layout = _on_device_of(decoder.layers[begin], hidden_states, layout)
            ranking = rank_visual_tokens(decoder, begin, hidden_states, layout, t2v, stage)
        with record_function(f"llava.layers {first}-{last - 1}"):
            hidden_states = _run_layers(
                decoder, begin, last, hidden_states, mask, layout.positions, cache, to_add, **of_stage
            )
    if cache is not None:
        cache.end_prompt()
    return LlavaModelOutput(
        last_hidden_state=decoder.norm(hidden_states), layouts=tuple(layouts), scores=tuple(scores), **named(cache)
    )


@capture_outputs
def continue_stages(
    decoder: Any, hidden_states: Tensor, cache: StagedCache, attention_mask: Tensor | None = None, **kwargs: Any
) -> LlavaModelOutput:
    """Decoding: new text behind a filled cache, each stage at its own positions; drops nothing.

    Args:
        decoder: Llama-like model.
        hidden_states: [B, n, D] embeddings of the new tokens.
        cache: what came before; extended in place.
        attention_mask: mask of the new tokens, [B, n], or longer: its last n columns. None counts all of them.
        kwargs: handed to every layer.

    Returns:
        hidden states [B, n, D] after the final norm.
    """
    cache.expect(None if attention_mask is None else attention_mask[:, -hidden_states.shape[1] :])
    ends = [stage.first_layer for stage in cache.stages[1:]] + [len(decoder.layers)]
    for stage, last in zip(cache.stages, ends, strict=True):
        positions = cache.append(stage, hidden_states.shape[1])
        mask = _causal_mask(decoder, hidden_states, stage.key_mask, cache, stage.first_layer)
        with record_function(f"llava.layers {stage.first_layer}-{last - 1}"):
            hidden_states = _run_layers(
                decoder, stage.first_layer, last, hidden_states, mask, positions, cache, {}, **kwargs
            )
    return LlavaModelOutput(last_hidden_state=decoder.norm(hidden_states), **named(cache))


def rank_visual_tokens(
    decoder: Any, layer_index: int, hidden_states: Tensor, layout: TokenLayout, t2v: T2VConfig, stage: int
) -> Tensor | None:
    """Scores float32 [B, L] for drop `stage`, from the queries and keys of the layer that scores.

    Detached: no gradient flows through a choice. None where nothing has to be ranked. Whether the layer's weights
    are used depends on the configuration alone when several ranks train together, because gathering partitioned
    weights is a collective call that all ranks must make.
    """
    counts = keep_counts(layout, t2v, stage)
    if t2v.score != "attention":
        if layout.is_packed and t2v.score not in T2V_SCORES:  # other packages score rows
            rows, place = in_rows(layout)
            return in_stream(control_scores(rows, t2v, stage, hidden_states.detach()[0][place]), layout)
        return control_scores(layout, t2v, stage, hidden_states.detach())
    if t2v.keep[stage] == 0 or (counts == layout.visual and not ranks_must_agree()):
        return None
    return attention_ranking(decoder, layer_index, hidden_states, layout)


@torch.no_grad()
def attention_ranking(decoder: Any, layer_index: int, hidden_states: Tensor, layout: TokenLayout) -> Tensor:
    """Attention float32 [B, L] that the voters of `layout` pay each position, by a layer's queries and keys.

    Args:
        decoder: Llama-like model.
        layer_index: 0-based number of the layer that scores: the first behind the drop, or the last in front of it.
        hidden_states: [B, L, D] that this layer gets, or would get were nothing dropped.
        layout: layout of the L positions.
    """
    layer = decoder.layers[layer_index]
    with record_function("llava.scoring"):
        queries, keys, voters, is_voter = _queries_and_keys(decoder, layer, hidden_states.detach(), layout)
        return attention_scores(queries, keys, layout, voters, is_voter, layer.self_attn.scaling)


def _on_device_of(layer: Any, hidden_states: Tensor, layout: TokenLayout) -> tuple[Tensor, TokenLayout]:
    """Follow a model that is spread over several devices to where a layer's weights are."""
    device = layer.input_layernorm.weight.device
    if device.type == "meta":  # offloaded weights come to the hidden states instead
        return hidden_states, layout
    return hidden_states.to(device), layout.to(device)


def _drop(
    hidden_states: Tensor,
    layout: TokenLayout,
    to_add: dict[int, Tensor],
    scores: Tensor | None,
    t2v: T2VConfig,
    stage: int,
) -> tuple[Tensor, TokenLayout, dict[int, Tensor]]:
    counts = keep_counts(layout, t2v, stage)
    if counts == layout.visual:
        return hidden_states, layout, to_add
    if scores is None:
        scores = torch.zeros(layout.valid.shape, device=hidden_states.device)
    with record_function("llava.drop"):
        keep = choose_visual_tokens(scores, layout, counts)
        width = hidden_states.shape[-1]
        together = torch.cat([hidden_states, *(features.to(hidden_states) for features in to_add.values())], dim=-1)
        gathered, kept = gather_kept(together, layout, keep, counts, t2v.positions)
        hidden_states, *added = gathered.split(width, dim=-1)
    return hidden_states, kept, dict(zip(to_add, added, strict=True))


def _queries_and_keys(
    decoder: Any, layer: Any, hidden_states: Tensor, layout: TokenLayout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rotated queries [B, H, V, d] of the voting tokens and keys [B, G, L, d] of all, and who the voters are."""
    attention: Any = layer.self_attn
    voters, is_voter = voting_positions(layout)
    normed = layer.input_layernorm(hidden_states)
    normed_voters = layout.take(normed, voters)  # [B, L, D] -> [B, V, D]
    cos, sin = (part.to(normed) for part in decoder.rotary_emb(hidden_states, position_ids=layout.positions))
    queries = _heads(attention.q_proj(normed_voters), attention, "q_norm")
    keys = _heads(attention.k_proj(normed), attention, "k_norm")
    queries = _rotate(queries, layout.take(cos, voters), layout.take(sin, voters))
    return queries, _rotate(keys, cos, sin), voters, is_voter


def _heads(projected: Tensor, attention: Any, norm: str) -> Tensor:
    """[B, L, heads * d] to [B, heads, L, d], with the per-head norm that some decoders have."""
    split = projected.unflatten(-1, (-1, attention.head_dim))  # [B, L, heads, d]
    if hasattr(attention, norm):
        split = getattr(attention, norm)(split)
    return split.transpose(1, 2)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [B, heads, L, d] with cos and sin [B, L, d]."""
    return states * cos[:, None] + rotate_half(states) * sin[:, None]


def _run_layers(
    decoder: Any,
    first: int,
    last: int,
    hidden_states: Tensor,
    mask: Tensor | None,
    positions: Tensor,
    cache: StagedCache | None,
    to_add: Mapping[int, Tensor],
    **kwargs: Any,
) -> Tensor:
    """Layers first..last-1, and what is added behind each. They get no position ids: gaps in them would be taken for
    packed sequences."""
    position_embeddings = decoder.rotary_emb(hidden_states, position_ids=positions)
    for index, layer in enumerate(decoder.layers[first:last], first):
        hidden_states = layer(
            hidden_states,
            attention_mask=mask,
            position_embeddings=position_embeddings,
            position_ids=None,
            use_cache=cache is not None,
            **named(cache),
            **kwargs,
        )
        if index in to_add:
            hidden_states = hidden_states + to_add[index].to(hidden_states)
    return hidden_states


def _causal_mask(
    decoder: Any, hidden_states: Tensor, key_mask: Tensor | None, cache: StagedCache | None, layer_index: int
) -> Any:
    return create_causal_mask(
        config=decoder.config,
        inputs_embeds=hidden_states,
        attention_mask=None if key_mask is None else key_mask.to(hidden_states.device),
        position_ids=None,
        layer_idx=layer_index,
        allow_is_causal_skip=key_mask is None,  # else transformers waits to see whether the mask hides anything
        **named(cache),
    )


def _stage_bounds(decoder: Any, t2v: T2VConfig | None) -> Iterator[tuple[int, int]]:
    """First layer and one past the last of every stage."""
    depth = len(decoder.layers)
    if t2v is not None:
        t2v.check_depth(depth)
    cuts = [0, *(t2v.layers if t2v else ()), depth]
    return pairwise(cuts)
