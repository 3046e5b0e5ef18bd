"""Vision-to-vision merging: score the patches, keep the dominant ones, merge some of the rest (paper section 3.1).

Shapes: B images, N tokens from the tower (P patches, plus one CLS token in front where the tower has one),
D width, K kept patches, C contextual tokens, M merged patches. Everything is batched; nothing waits for the device.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.common.own_scores import scored_by_own, unknown_choice
from llava.compression.config import V2V_CLUSTERS, V2V_SCORES, V2VConfig
from llava.compression.selection import even_spread, seeded_noise, without_autocast

logger = logging.getLogger(__name__)


class PatchRole(IntEnum):
    """What becomes of a patch in V2V: it is dropped, kept, the anchor of a contextual token, or merged into one."""

    DROPPED = 0
    DOMINANT = 1
    ANCHOR = 2
    MERGED = 3


@dataclass(frozen=True)
class MergePlan:
    """The choices of V2V, as patch numbers from 0 (CLS not counted).

    Attributes:
        dominant: [B, K] patches kept as they are, most important first.
        pool: [B, R] candidates for merging, in the order the anchors are drawn from.
        anchors: [B, C] patch that each contextual token is merged around.
        members: [B, M] patches averaged into a contextual token.
        assignment: [B, M] number of the contextual token that each member goes to.
    """

    dominant: Tensor
    pool: Tensor
    anchors: Tensor
    members: Tensor
    assignment: Tensor


@dataclass(frozen=True)
class V2VResult:
    """Merged tokens, and where every patch went.

    Attributes:
        tokens: [B, N0, D] CLS (if any) and dominant patches in spatial order, then the contextual tokens.
        plan: the choices behind them.
        num_patches: P, patches that came in.
        has_cls: whether the first token is CLS.
    """

    tokens: Tensor
    plan: MergePlan
    num_patches: int
    has_cls: bool

    @property
    def source(self) -> Tensor:
        """[B, N0] patch that each token is or is built around, -1 for CLS."""
        cls = self.plan.dominant.new_full((len(self.plan.dominant), int(self.has_cls)), -1)  # [B, 1 or 0]
        return torch.cat([cls, self.plan.dominant.sort(dim=1).values, self.plan.anchors], dim=1)

    @property
    def roles(self) -> Tensor:
        """[B, P] a `PatchRole` for each patch."""
        return self._trace[0]

    fate = roles  # its former name

    @property
    def target(self) -> Tensor:
        """[B, P] index of the token that a patch became or joined (the first of several), -1 where it was dropped."""
        return self._trace[1]

    @functools.cached_property
    def _trace(self) -> tuple[Tensor, Tensor]:
        plan, spatial = self.plan, self.plan.dominant.sort(dim=1).values  # [B, K]
        batch, kept = spatial.shape
        slots = torch.arange(kept + plan.anchors.shape[1], device=spatial.device).expand(batch, -1) + int(self.has_cls)
        roles = spatial.new_full((batch, self.num_patches), int(PatchRole.DROPPED))
        roles.scatter_(1, plan.members, int(PatchRole.MERGED))
        roles.scatter_(1, plan.anchors, int(PatchRole.ANCHOR))
        roles.scatter_(1, spatial, int(PatchRole.DOMINANT))
        target = spatial.new_full((batch, self.num_patches), -1)
        joined = plan.assignment + int(self.has_cls) + kept  # [B, M]
        target.scatter_reduce_(1, plan.members, joined, reduce="amin", include_self=False)
        target.scatter_(1, plan.anchors, slots[:, kept:])
        target.scatter_(1, spatial, slots[:, :kept])
        return roles, target


def merge_visual_tokens(
    hidden_states: Tensor,
    cls_attention: Tensor | None,
    keys: Tensor | None,
    config: V2VConfig,
    attention: Tensor | None = None,
    received: Tensor | None = None,
    *,
    has_cls: bool | None = None,
) -> V2VResult:
    """Turn the tower's tokens into `config.token_count(N)` information-preserving ones (Algorithm 1).

    Gradients flow through the tokens, never through the choice.

    Args:
        hidden_states: [B, N, D]; with a CLS token in front if `has_cls`.
        cls_attention: [B, P] attention that CLS pays each patch, summed over heads. Needed by `score: cls`; None
            from a tower without a CLS token: all N tokens are patches then.
        keys: [B, N, Dk] keys of the scored layer, averaged over heads. Needed by `anchored` and `uniform` clusters.
        config: what to keep and how to merge.
        attention: [B, N, N] attention map of the scored layer, averaged over heads. Needed by `neighbours` clusters,
            and by `score: received` unless `received` is given.
        received: [B, N] mean over the rows of that map, from a tower whose whole map would be too large.
        has_cls: whether the first of the N tokens is CLS; None takes it that a tower which gives `cls_attention` has
            one, and that any other has none.

    Raises:
        ValueError: if more than N dominant tokens are asked for, an input that the options need is missing, or an
            input is of another number of tokens.
    """
    count = hidden_states.shape[1]
    config.token_count(count)
    if has_cls is None:
        has_cls = cls_attention is not None
    _check_counts(count, has_cls, cls_attention=cls_attention, keys=keys, attention=attention, received=received)
    with torch.no_grad(), without_autocast(hidden_states.device):
        if received is None and attention is not None:
            received = attention.float().mean(dim=1)  # [B, N]
        scores = score_patches(cls_attention, received, config, count - has_cls, hidden_states)
        plan = plan_merge(scores, keys, config, has_cls=has_cls, attention=attention)
    patches = hidden_states[:, int(has_cls) :]  # [B, P, D]
    spatial = plan.dominant.sort(dim=1).values  # [B, K]
    parts = [hidden_states[:, : int(has_cls)], _take(patches, spatial), _contextual_tokens(patches, plan, config)]
    return V2VResult(torch.cat(parts, dim=1), plan, patches.shape[1], has_cls)


def score_patches(
    cls_attention: Tensor | None, received: Tensor | None, config: V2VConfig, num_patches: int, like: Tensor
) -> Tensor:
    """Importance of each patch of `like` [B, N, D], float32 [B, P], higher is kept first; see `V2VConfig.score`."""
    batch, first_patch = like.shape[0], like.shape[1] - num_patches
    index = torch.arange(num_patches, device=like.device)  # [P]
    received = None if received is None else received.float()[:, first_patch:]  # [B, N] -> [B, P]
    match config.score:
        case "cls":
            if cls_attention is None:
                raise ValueError("v2v.score is 'cls', but this vision tower has no CLS token; use 'received' instead.")
            return cls_attention.float()
        case "received":
            return _required(received, "attention", "v2v.score 'received'")
        case "random":
            return seeded_noise(index, config.seed).expand(batch, -1)
        case "uniform":
            return even_spread(index).expand(batch, -1)
        case other:
            given = (like[:, first_patch:].detach(), cls_attention, received, config)
            return scored_by_own("v2v", other, V2V_SCORES, (batch, num_patches), *given)


def plan_merge(
    scores: Tensor, keys: Tensor | None, config: V2VConfig, *, has_cls: bool, attention: Tensor | None = None
) -> MergePlan:
    """Choose dominant patches, anchors and members from the scores [B, P]; ties go to the lower patch number."""
    num_patches = scores.shape[1]
    asked, requested = config.counts(num_patches + has_cls)
    kept = asked - has_cls
    contextual = min(requested, num_patches - kept)
    if contextual < requested:
        _say_once(
            f"v2v asks for {requested} contextual tokens, but {asked} dominant ones leave {contextual} patches; "
            f"{contextual} contextual tokens are made."
        )
    order = scores.sort(dim=1, descending=True, stable=True).indices  # [B, P], patches by falling score
    dominant, rest = order[:, :kept], order[:, kept:]  # [B, K], [B, P - K]
    if contextual == 0:
        return MergePlan(dominant, *[rest[:, :0]] * 4)
    match config.clusters:
        case "neighbours":
            attention = _required(attention, "attention", "v2v.clusters 'neighbours'")
            return _plan_neighbours(dominant, rest, attention[:, int(has_cls) :, int(has_cls) :], contextual, config)
        case "anchored":
            pool = rest[:, : config.cluster_width * contextual]
        case "uniform":
            pool = rest.sort(dim=1).values
        case other:
            raise unknown_choice("v2v.clusters", other, V2V_CLUSTERS)
    keys = _required(keys, "keys", f"v2v.clusters {config.clusters!r}")
    return _plan_anchored(dominant, pool, keys[:, int(has_cls) :], contextual)


def _plan_anchored(dominant: Tensor, pool: Tensor, keys: Tensor, contextual: int) -> MergePlan:
    """Every s-th patch of the pool is an anchor; the others join the anchor whose key is most similar."""
    size = pool.shape[1]
    step = size // contextual
    is_anchor = torch.zeros(size, dtype=torch.bool, device=pool.device)  # [R]
    is_anchor[: step * contextual : step] = True
    slots = torch.argsort((~is_anchor).int(), stable=True)  # [R], anchors first
    anchors, members = pool[:, slots[:contextual]], pool[:, slots[contextual:]]  # [B, C], [B, M]
    unit_keys = F.normalize(keys.float(), dim=-1)  # [B, P, Dk]
    similarity = _take(unit_keys, members) @ _take(unit_keys, anchors).transpose(1, 2)  # [B, M, C]
    return MergePlan(dominant, pool, anchors, members, similarity.argmax(dim=-1))


def _plan_neighbours(
    dominant: Tensor, rest: Tensor, attention: Tensor, contextual: int, config: V2VConfig
) -> MergePlan:
    """The most important remaining patches are centroids; each takes the patches it attends to most."""
    centroids = rest[:, :contextual]  # [B, C]
    width = min(config.cluster_width, rest.shape[1])
    paid = _take(attention.float(), centroids)  # [B, C, P]
    paid = paid.gather(2, rest[:, None].expand(-1, contextual, -1))  # [B, C, P - K]
    nearest = paid.sort(dim=2, descending=True, stable=True).indices[:, :, :width]  # [B, C, width]
    members = rest[:, None].expand(-1, contextual, -1).gather(2, nearest).flatten(1)  # [B, C * width]
    assignment = torch.arange(contextual, device=rest.device).repeat_interleave(width).expand(rest.shape[0], -1)
    return MergePlan(dominant, rest, centroids, members, assignment)


def _contextual_tokens(patches: Tensor, plan: MergePlan, config: V2VConfig) -> Tensor:
    """[B, C, D]: anchor plus mean of its members (VisionZip, released code), or the mean alone (Algorithm 1)."""
    contextual = plan.anchors.shape[1]
    slots = torch.arange(contextual, device=patches.device)
    belongs = (plan.assignment[:, None, :] == slots[:, None]).to(patches.dtype)  # [B, C, M]
    with without_autocast(patches.device):
        mean = belongs @ _take(patches, plan.members) / belongs.sum(dim=-1, keepdim=True).clamp(min=1)  # [B, C, D]
    match config.clusters:
        case "neighbours":
            return mean
        case "anchored" | "uniform":
            return _take(patches, plan.anchors) + mean
        case other:
            raise unknown_choice("v2v.clusters", other, V2V_CLUSTERS)


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Gather tokens [B, N, D] at index [B, K] along dimension 1."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _check_counts(count: int, has_cls: bool, **given: Tensor | None) -> None:
    """Raise ValueError where what tokens are scored or merged by is not of the `count` tokens that there are."""
    expected = {"cls_attention": count - 1, "keys": count, "attention": count, "received": count}
    for name, values in ((name, values) for name, values in given.items() if values is not None):
        if name == "cls_attention" and not has_cls:
            raise ValueError("cls_attention is given, but has_cls is False; a tower without a CLS token has none.")
        if values.shape[1] != expected[name]:
            raise ValueError(
                f"{name} has {values.shape[1]} entries an image, but there are {count} tokens"
                f"{', the CLS token included' if has_cls else ''}; it must have {expected[name]}."
            )


def _required(value: Tensor | None, name: str, option: str) -> Tensor:
    if value is None:
        raise ValueError(f"{option} needs the tower's {name}, but none was given; pass {name}= to the merge.")
    return value


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)
