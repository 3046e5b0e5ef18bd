"""Scores of other packages, which every program takes by name beside those of `V2VConfig` and `T2VConfig`.

    [project.entry-points."llava.v2v_scores"]
    norm = "my_package:norm"

`norm(patches, cls_attention, received, config)` of this group gets the patches [B, P, D], the attention that CLS pays
them [B, P], that they receive [B, P] (each None where the tower does not give it) and the `V2VConfig`, and returns the
importance [B, P]. With an attribute `needs_attention_map` that is true, every tower gives what patches receive.
A score of `llava.t2v_scores`, called with (hidden_states, layout, config, stage), gets the hidden states [B, L, D] in
front of drop `stage`, their `TokenLayout` and the `T2VConfig`, and returns [B, L], looked at on visual tokens alone.
The largest are kept; no gradient flows through a score.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from llava.common.shown import shown


def unknown_choice(field: str, value: object, accepted: Sequence[str]) -> ValueError:
    """The error of an option that is none of those accepted; what branches on an option ends in it."""
    return ValueError(f"{field} is {shown(value)}; it must be one of {', '.join(accepted)}.")


def require_choice(field: str, value: object, accepted: Sequence[str]) -> None:
    """Raise ValueError for a value that is none of those accepted."""
    if value not in accepted:
        raise unknown_choice(field, value, accepted)


def require_score(stage: str, score: object, built_in: tuple[str, ...]) -> None:
    """Raise ValueError for a score that is neither built in nor `own_score` finds."""
    if not isinstance(score, str):
        raise unknown_choice(f"{stage}.score", score, built_in)
    if score not in built_in:
        own_score(stage, score, built_in)


@functools.cache
def own_score(stage: str, name: str, built_in: tuple[str, ...]) -> Callable[..., Tensor]:
    """The score of another package for a stage, `v2v` or `t2v`; `built_in` are those that need no package.

    Raises:
        ValueError: if there is none of that name, there are several, or it cannot be imported or called.
    """
    known = entry_points(group=f"llava.{stage}_scores")
    found = {entry.value: entry for entry in known.select(name=name)}
    if not found:
        raise unknown_choice(f"{stage}.score", name, (*built_in, *sorted(known.names)))
    if len(found) > 1:
        raise ValueError(f"{stage}.score {name!r} is of several packages: {', '.join(found)}; keep one of them.")
    (entry,) = found.values()
    try:
        score = entry.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{stage}.score {name!r} is {entry.value}, which cannot be imported: {error}.") from error
    if not callable(score):
        raise ValueError(f"{stage}.score {name!r} is {entry.value}, which must be a function.")
    return score


def scored_by_own(stage: str, name: str, built_in: tuple[str, ...], shape: tuple[int, ...], *given: Any) -> Tensor:
    """float32 scores of a `shape` by the score of another package, see `own_score`, for what it is `given`.

    Raises:
        ValueError: if there is none of that name, or its scores have another shape.
    """
    score = own_score(stage, name, built_in)
    with torch.no_grad():
        scores = score(*given)
    if scores.shape != shape:
        raise ValueError(f"{stage}.score {name!r} gives scores {list(scores.shape)}; it must give {list(shape)}.")
    return scores.float()
