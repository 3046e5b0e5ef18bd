"""LoRA adapters inside the encoder of a LanguageBind tower, as its image class wraps it, merged into the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_WRAPPED = re.compile(r"(^|\.)encoder\.base_model\.model\.")
_PARTS = re.compile(r"\.(base_layer\.|lora_([AB])\.\w+\.)(weight|bias)$")


def is_wrapped(names: Iterable[str]) -> bool:
    """Whether names of weights are those of an encoder that peft has wrapped."""
    return any(_WRAPPED.search(name) for name in names)


def merged(state: Mapping[str, Tensor], rank: int, alpha: int) -> dict[str, Tensor]:
    """The weights under plain names, each adapted one with what its adapter adds: `alpha / rank * B @ A`.

    Args:
        state: weights of a tower, or of a model with one; those of other modules stay what they are.
        rank, alpha: `lora_r` and `lora_alpha` of the tower's configuration.

    Raises:
        ValueError: if one half of an adapter is missing, or has another rank.
    """
    plain: dict[str, Tensor] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        unwrapped = _WRAPPED.sub(r"\1encoder.", name)
        part = _PARTS.search(unwrapped) if unwrapped != name else None
        if part is None:
            plain[unwrapped] = tensor
        elif part.group(2) is None:
            plain[unwrapped.replace(".base_layer.", ".")] = tensor
        else:
            halves.setdefault(unwrapped[: part.start()] + ".weight", {})[part.group(2)] = tensor
    for name, pair in halves.items():
        if set(pair) != {"A", "B"} or name not in plain or len(pair["A"]) != rank:
            raise ValueError(
                f"The adapter of {name!r} is incomplete or of another rank than lora_r, which is {rank}; fetch it anew."
            )
        added = pair["B"].float() @ pair["A"].float() * (alpha / rank)
        plain[name] = (plain[name].float() + added).to(plain[name].dtype)
    return plain
