"""A second model on the same weights: its own modules, configuration and hooks, but no tensor twice."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

from torch import nn

_HOOKED = ("forward", "_old_forward", "_hf_hook")


def shared_copy(model: nn.Module, kind: type[nn.Module]) -> Any:
    """An instance of `kind` with copies of a model's modules around the very same parameters and buffers.

    Adapters put into one of the two are not seen by the other; training the weights they share is.

    Args:
        model: any model; stays as it is.
        kind: a class with the same modules, usually one that inherits from the model's.
    """
    twin = kind.__new__(kind)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    memo[id(model)] = twin
    own = {name: value for name, value in model.__dict__.items() if name not in _HOOKED}
    object.__setattr__(twin, "__dict__", copy.deepcopy(own, memo))
    hook = model.__dict__.get("_hf_hook")
    if hook is not None:  # accelerate's, on a model that is spread over devices; it wraps forward, which is new
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(twin, copy.copy(hook))
    return twin


def as_kind(model: nn.Module, kind: type[nn.Module]) -> Any:
    """The same model, seen as an instance of another class: one state, another set of methods."""
    view = kind.__new__(kind)
    object.__setattr__(view, "__dict__", model.__dict__)
    return view
