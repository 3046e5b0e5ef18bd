"""Slow, plain implementations to test against: one sample at a time, loops, weights read by name.

Nothing here calls a function of `llava`; settings arrive as its configuration objects.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny import Row, stock_tower
from torch import Tensor
from torch.nn import functional as F

IMAGE, IGNORE = -200, -100
ROLES = {"last": 4, "text": 1, "salient": 2 | 4}


# ---------------------------------------------------------------------------------------------- vision-to-vision


@dataclass
class Merge:
    """What became of the patches of one image; patch numbers do not count CLS."""

    dominant: list[int]
    clusters: list[tuple[int, list[int]]]
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))


def received_scores(attention: Tensor) -> list[float]:
    """Mean attention that each token gets from all, of a map [N, N]."""
    count = attention.shape[0]
    return [sum(float(attention[query, key]) for query in range(count)) / count for key in range(count)]


def ranked(scores: list[float], among: list[int]) -> list[int]:
    """Numbers by falling score, ties to the lower number."""
    return sorted(among, key=lambda number: (-scores[number], number))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def anchored_clusters(rest: list[int], keys: Tensor, contextual: int, width: int) -> list[tuple[int, list[int]]]:
    """Released code: anchors at ranks 0, s, 2s, ... of the pool, members join the most similar anchor."""
    return _join(rest[: width * contextual], keys, contextual)


def uniform_clusters(rest: list[int], keys: Tensor, contextual: int) -> list[tuple[int, list[int]]]:
    """VisionZip: the pool is everything that is left, in the image's order."""
    return _join(sorted(rest), keys, contextual)


def _join(pool: list[int], keys: Tensor, contextual: int) -> list[tuple[int, list[int]]]:
    step = max(1, len(pool) // contextual)
    anchors = pool[::step][:contextual]
    members: dict[int, list[int]] = {anchor: [] for anchor in anchors}
    for patch in pool:
        if patch not in members:
            similarity = [cosine(keys[patch], keys[anchor]) for anchor in anchors]
            members[anchors[similarity.index(max(similarity))]].append(patch)
    return list(members.items())


def neighbour_clusters(rest: list[int], attention: Tensor, contextual: int, width: int) -> list[tuple[int, list[int]]]:
    """Algorithm 1: the best of the rest, each with the patches of the rest it attends to most."""
    clusters = []
    for centroid in rest[:contextual]:
        paid = {patch: float(attention[centroid, patch]) for patch in rest}
        clusters.append((centroid, sorted(rest, key=lambda patch: (-paid[patch], rest.index(patch)))[:width]))
    return clusters


def merge(features: Tensor, attention: Tensor, keys: Tensor, v2v: Any) -> Merge:
    """V2V of one image with a CLS token: features [1 + P, D], attention [H, 1 + P, 1 + P], keys [H, 1 + P, d]."""
    patches = features.shape[0] - 1
    if v2v.score == "cls":
        scores = [sum(float(head[0, 1 + patch]) for head in attention) for patch in range(patches)]
    else:
        scores = received_scores(attention.mean(dim=0))[1:]
    order = ranked(scores, list(range(patches)))
    dominant, rest = order[: v2v.dominant - 1], order[v2v.dominant - 1 :]
    contextual = min(v2v.contextual, len(rest))
    mean_keys = keys.mean(dim=0)[1:]
    if contextual == 0:
        clusters = []
    elif v2v.clusters == "anchored":
        clusters = anchored_clusters(rest, mean_keys, contextual, v2v.cluster_width)
    elif v2v.clusters == "uniform":
        clusters = uniform_clusters(rest, mean_keys, contextual)
    else:
        clusters = neighbour_clusters(rest, attention.mean(dim=0)[1:, 1:], contextual, v2v.cluster_width)
    tokens = [features[0]] + [features[1 + patch] for patch in sorted(dominant)]
    for anchor, members in clusters:
        mean = sum(features[1 + patch] for patch in members) / max(1, len(members))
        tokens.append(mean if v2v.clusters == "neighbours" else features[1 + anchor] + mean)
    return Merge(dominant, clusters, torch.stack(tokens))


@functools.lru_cache(maxsize=4)
def eyes(model: Any) -> Any:
    """transformers' eager tower of a model, made once."""
    return stock_tower(model)


def look(model: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, attention and keys of the selected layer of one image [3, h, w], from transformers' eager tower."""
    stock = eyes(model)
    layer = range(len(stock.encoder.layers) + 1)[getattr(model.config, "mm_vision_select_layer", -2)]
    seen: list[Tensor] = []
    hook = stock.encoder.layers[layer - 1].self_attn.k_proj.register_forward_hook(lambda *call: seen.append(call[2]))
    output = stock(image[None], output_hidden_states=True, output_attentions=True)
    hook.remove()
    heads = stock.config.num_attention_heads
    keys = seen[0][0].unflatten(-1, (heads, -1)).transpose(0, 1)
    return output.hidden_states[layer][0], output.attentions[layer - 1][0], keys


def visual_tokens(model: Any, image: Tensor, v2v: Any) -> Tensor:
    """Projected visual tokens [N, D] of one image."""
    with torch.no_grad():
        features, attention, keys = look(model, image)
        tokens = features[1:] if v2v is None else merge(features, attention, keys, v2v).tokens
    first, second = model.model.mm_projector[0], model.model.mm_projector[2]
    return F.linear(F.gelu(F.linear(tokens, first.weight, first.bias)), second.weight, second.bias)


# ------------------------------------------------------------------------------------------------ text-to-vision


@dataclass
class Answer:
    """What the staged decoder computed for one sample: logits and labels of what is left, and kept tokens."""

    logits: Tensor
    labels: list[int]
    kept: list[list[int]]
    scores: list[list[float]]

    def loss_sum(self) -> Tensor:
        """Sum of the next-token loss over supervised positions."""
        targets = torch.tensor(self.labels[1:])
        return F.cross_entropy(self.logits[:-1].float(), targets, ignore_index=IGNORE, reduction="sum")

    def supervised(self) -> int:
        """How many positions have a target."""
        return sum(label != IGNORE for label in self.labels[1:])


def answer(model: Any, row: Row, images: Tensor, compression: Any) -> Answer:
    """Run one sample without padding, cache or batch."""
    return answer_from(model, row, [visual_tokens(model, image, compression.v2v) for image in images], compression.t2v)


def answer_from(model: Any, row: Row, features: list[Tensor], t2v: Any) -> Answer:
    """The same, given the visual tokens of each image."""
    queries = t2v.queries if t2v else "last"
    embeddings: list[Tensor] = []
    visual: list[int] = []
    roles: list[int] = []
    labels: list[int] = []
    waiting = list(features)
    for token, role, label in zip(row.ids, row.roles, row.labels, strict=True):
        if token == IMAGE:
            image = waiting.pop(0)
            embeddings += list(image)
            roles += [0] * (len(image) - 1) + [role]
            labels += [IGNORE] * len(image)
            visual += [1] * len(image)
        else:
            embeddings.append(model.model.embed_tokens.weight[token])
            roles.append(role)
            labels.append(label)
            visual.append(0)
    first = visual.index(1) if 1 in visual else len(visual)
    votes = [bool(role & ROLES[queries]) and place >= first for place, role in enumerate(roles)]
    return decode(model, torch.stack(embeddings), visual, votes, labels, t2v)


def decode(model: Any, x: Tensor, visual: list[int], votes: list[bool], labels: list[int], t2v: Any) -> Answer:
    """All layers on one row [L, D], with drops between them."""
    decoder = model.model
    alive, positions = list(range(len(visual))), list(range(len(visual)))
    rank = [sum(visual[:place]) if is_visual else -1 for place, is_visual in enumerate(visual)]
    voters = [place for place, may in enumerate(votes) if may]
    kept, all_scores = [], []
    entered: list[Tensor] = []  # what each layer got; scores are asked for before anything is dropped
    for number, layer in enumerate(decoder.layers):
        if t2v is not None and number in t2v.layers:
            here = {place: at for at, place in enumerate(alive)}
            scorer, seen = (layer, x) if t2v.scored_by == "after" else (decoder.layers[number - 1], entered[-1])
            with torch.no_grad():
                scores = vote(decoder, scorer, seen, positions, [here[place] for place in voters])
            share = t2v.keep[t2v.layers.index(number)]
            candidates = [place for place in alive if visual[place]]
            best = sorted(candidates, key=lambda place: (-scores[here[place]], place))[: int(sum(visual) * share)]
            stays = [place for place in alive if not visual[place] or place in best]
            voters = sorted({max((p for p in stays if p <= v), default=stays[0]) for v in voters})
            x = x[[here[place] for place in stays]]
            positions = list(range(len(stays))) if t2v.positions == "renumber" else stays
            all_scores.append([scores[here[place]] for place in candidates])
            alive = stays
            kept.append([rank[place] for place in alive if visual[place]])
        entered.append(x)
        x = run_layer(decoder, layer, x, positions)
    logits = rms_norm(x, decoder.norm) @ model.lm_head.weight.T
    return Answer(logits, [labels[place] for place in alive], kept, all_scores)


def vote(decoder: Any, layer: Any, x: Tensor, positions: list[int], voters: list[int]) -> list[float]:
    """Attention that each position gets, mean over heads and voters."""
    if not voters:
        return [0.0] * len(x)
    queries, keys = rotated(decoder, layer, x, positions)
    weights = attend(queries, keys, layer.self_attn.scaling)
    return [sum(float(weights[:, v, place].mean()) for v in voters) / len(voters) for place in range(len(x))]


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    """Llama normalises in float32 whatever the data type."""
    wide = x.float()
    return norm.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)).to(x.dtype)


def rotated(decoder: Any, layer: Any, x: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
    """Rotated queries [H, L, d] and keys [H, L, d], key heads repeated for grouped queries."""
    normed, width = rms_norm(x, layer.input_layernorm), decoder.config.head_dim
    queries = (normed @ layer.self_attn.q_proj.weight.T).unflatten(-1, (-1, width)).transpose(0, 1)
    keys = (normed @ layer.self_attn.k_proj.weight.T).unflatten(-1, (-1, width)).transpose(0, 1)
    keys = torch.stack([keys[head * len(keys) // len(queries)] for head in range(len(queries))])
    theta = decoder.config.rope_parameters["rope_theta"]
    speed = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = torch.tensor(positions, dtype=torch.float32)[:, None] * speed
    return rotate(queries, angle), rotate(keys, angle)


def rotate(states: Tensor, angle: Tensor) -> Tensor:
    """Turn the pairs (i, i + d/2) of states [H, L, d] by angle [L, d/2]."""
    cos, sin = angle.cos().to(states.dtype), angle.sin().to(states.dtype)
    low, high = states.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def attend(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Causal attention [H, L, L]."""
    logits = queries @ keys.transpose(1, 2) * scale
    future = torch.ones(logits.shape[1:]).triu(1).bool()
    return logits.masked_fill(future, -torch.inf).softmax(-1)


def run_layer(decoder: Any, layer: Any, x: Tensor, positions: list[int]) -> Tensor:
    """One decoder layer on [L, D]."""
    queries, keys = rotated(decoder, layer, x, positions)
    weights = attend(queries, keys, layer.self_attn.scaling)
    normed = rms_norm(x, layer.input_layernorm)
    values = (normed @ layer.self_attn.v_proj.weight.T).unflatten(-1, (-1, decoder.config.head_dim)).transpose(0, 1)
    values = torch.stack([values[head * len(values) // len(queries)] for head in range(len(queries))])
    x = x + (weights @ values).transpose(0, 1).flatten(1) @ layer.self_attn.o_proj.weight.T
    normed = rms_norm(x, layer.post_attention_layernorm)
    gate = F.silu(normed @ layer.mlp.gate_proj.weight.T) * (normed @ layer.mlp.up_proj.weight.T)
    return x + gate @ layer.mlp.down_proj.weight.T
