"""The published way of scoring, as a slow reference: what the paper's released program computes, in our own words.

Its tower runs every layer with attention that gives its weights (eager), keeps the maps and keys of all of them, and
merges image by image. Its decoder computes query, key and value of every token once more in front of each drop, and
chooses row by row, asking the device for each count. Its head runs at every position. What it chooses is what
`llava.compression` chooses: the tests compare both. Only budgets that score by CLS and by the last instruction token.

Shapes: B rows, L positions, N tokens of an image (CLS in front), D width, H heads, d head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import repeat_kv, rotate_half

from llava.compression.config import CompressionConfig
from llava.compression.v2v import merge_visual_tokens
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX


@dataclass(frozen=True)
class PublishedOutput:
    """What a forward gives.

    Attributes:
        loss: mean over the targets; None without labels.
        logits: [B, L', V] behind the last drop.
        kept: visual tokens of each row that are left, by their number among those that entered.
    """

    loss: Tensor | None
    logits: Tensor
    kept: tuple[tuple[int, ...], ...]


@dataclass
class _Row:
    """A row: hidden states [L, D], labels [L], visual index [L] (-1 on text), and where its voter stands."""

    states: Tensor
    labels: Tensor
    visual: Tensor
    voter: int


def published_forward(model: Any, batch: Mapping[str, Any], config: CompressionConfig) -> PublishedOutput:
    """Logits, and with labels a loss, of rows with one image each.

    Args:
        model: a LLaVA-1.5 in LLaVA's own format.
        batch: `input_ids` and `images`, with `attention_mask` and `labels` where there are any.
        config: budget; of V2V those that score by CLS, of T2V those that score by attention behind the drop.
    """
    features = tower_features(model.get_vision_tower(), batch["images"], config)
    rows = _spliced(model, batch, model.project(features))
    decoder, layers = model.decoder, list(model.decoder.layers)
    cuts = {} if config.t2v is None else dict(zip(config.t2v.layers, config.t2v.keep, strict=True))
    entered = [int((row.visual >= 0).sum()) for row in rows]
    states, mask, rotary = _together(decoder, rows)
    for index, layer in enumerate(layers):
        if index in cuts:
            _take_back(rows, states)
            for row, count in zip(rows, entered, strict=True):
                _drop(decoder, layer, row, int(count * cuts[index]))
            states, mask, rotary = _together(decoder, rows)
        states = layer(states, attention_mask=mask, position_embeddings=rotary, position_ids=None)
    _take_back(rows, states)
    logits = model.lm_head(decoder.norm(states))
    kept = tuple(tuple(row.visual[row.visual >= 0].tolist()) for row in rows)
    return PublishedOutput(_loss(logits, rows) if "labels" in batch else None, logits, kept)


@torch.no_grad()
def tower_features(tower: Any, images: Tensor, config: CompressionConfig) -> Tensor:
    """Features [B, N0, D] of the tower: every layer eager, all maps and keys kept, merged image by image."""
    states = tower.model.pre_layrnorm(tower.model.embeddings(images.to(tower.dtype)))
    maps, keys, hidden = [], [], [states]
    for layer in tower.model.encoder.layers:
        mixed, weights, key = _eager(layer.self_attn, layer.layer_norm1(states))
        states = states + mixed
        states = states + layer.mlp(layer.layer_norm2(states))
        hidden.append(states)
        maps.append(weights)
        keys.append(key.mean(dim=1))
    tower.model.post_layernorm(states[:, 0])
    selected = hidden[tower.select_layer]
    if config.v2v is None:
        return selected[:, 1:]
    of_layer = tower.select_layer % len(hidden) - 1
    merged = []
    for image in range(len(images)):
        one = slice(image, image + 1)
        attention = maps[of_layer][one]
        result = merge_visual_tokens(selected[one], attention[:, :, 0, 1:].sum(dim=1), keys[of_layer][one], config.v2v)
        merged.append(result.tokens)
    return torch.cat(merged)


def _eager(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of a tower's layer: its output [B, N, D], weights [B, H, N, N] and keys [B, H, N, d]."""
    query, key, value = (
        projection(normed).unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weights = (query @ key.transpose(2, 3) * attention.scale).softmax(dim=-1, dtype=torch.float32)
    mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
    return attention.out_proj(mixed), weights, key


def _spliced(model: Any, batch: Mapping[str, Any], features: Tensor) -> list[_Row]:
    """Rows with the visual tokens in place of their placeholders, cut and joined one by one."""
    rows = []
    for number, ids in enumerate(batch["input_ids"]):
        valid = batch["attention_mask"][number].bool() if "attention_mask" in batch else torch.ones_like(ids).bool()
        ids = ids[valid]
        labels = batch["labels"][number][valid] if "labels" in batch else torch.full_like(ids, IGNORE_INDEX)
        place = int((ids == IMAGE_TOKEN_INDEX).nonzero()[0])
        text = model.get_input_embeddings()(torch.cat([ids[:place], ids[place + 1 :]]))
        count = len(features[number])
        ignored = ids.new_full((count,), IGNORE_INDEX)
        answers = (labels != IGNORE_INDEX).nonzero().flatten()
        first = int(answers[0]) if len(answers) else len(ids)
        rows.append(
            _Row(
                torch.cat([text[:place], features[number].to(text), text[place:]]),
                torch.cat([labels[:place], ignored, labels[place + 1 :]]),
                torch.cat(
                    [ignored.new_full((place,), -1), torch.arange(count, device=ids.device), ids[place + 1 :] * 0 - 1]
                ),
                first - 1 + count - 1,
            )
        )
    return rows


def _together(decoder: Any, rows: list[_Row]) -> tuple[Tensor, Any, tuple[Tensor, Tensor]]:
    """Rows [B, L, D] padded on the right, their mask, and cosine and sine of positions counted anew."""
    states = pad_sequence([row.states for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row.states), device=states.device) for row in rows], batch_first=True).bool()
    made = create_causal_mask(
        config=decoder.config, inputs_embeds=states, attention_mask=mask, past_key_values=None, position_ids=None
    )
    positions = torch.arange(states.shape[1], device=states.device)[None].expand(len(rows), -1)
    return states, made, decoder.rotary_emb(states, position_ids=positions)


def _take_back(rows: list[_Row], states: Tensor) -> None:
    for row, padded in zip(rows, states, strict=True):
        row.states = padded[: len(row.states)]


def _drop(decoder: Any, layer: Any, row: _Row, count: int) -> None:
    """Keep the visual tokens of a row that its voter attends to most, by query, key and value of every token."""
    attention = layer.self_attn
    with torch.no_grad():
        normed = layer.input_layernorm(row.states.detach())[None]  # [1, L, D]
        positions = torch.arange(normed.shape[1], device=normed.device)[None]
        cos, sin = (part[:, None] for part in decoder.rotary_emb(normed, position_ids=positions))
        query, key, _ = (
            projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = (states * cos + rotate_half(states) * sin for states in (query, key))
        key = repeat_kv(key, query.shape[1] // key.shape[1])
        logits = query[:, :, row.voter : row.voter + 1] @ key.transpose(2, 3) * attention.scaling  # [1, H, 1, L]
        logits[..., row.voter + 1 :] = torch.finfo(logits.dtype).min
        score = logits.softmax(dim=-1, dtype=torch.float32).mean(dim=1)[0, 0]  # [L]
        visual = (row.visual >= 0).nonzero().flatten()
        best = visual[score[visual].topk(count).indices] if count else visual[:0]
        stays = row.visual < 0
        stays[best] = True
    row.voter = int(stays[: row.voter + 1].sum()) - 1
    row.states, row.labels, row.visual = row.states[stays], row.labels[stays], row.visual[stays]


def _loss(logits: Tensor, rows: list[_Row]) -> Tensor:
    labels = pad_sequence([row.labels for row in rows], batch_first=True, padding_value=IGNORE_INDEX)
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
