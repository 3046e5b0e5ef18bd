"""A second model on the same weights: its own modules, configuration and hooks, but no tensor twice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import nn

from llava.model.collectives import is_partitioned

_HOOKED = ("forward", "_old_forward", "_hf_hook")


def shared_copy(model: nn.Module, kind: type[nn.Module]) -> Any:
    """An instance of `kind` with copies of a model's modules around the very same numbers.

    Adapters put into one of the two, and its data type and device, are not seen by the other; training the weights they
    share is. Layers of bitsandbytes are shared whole: they take what belongs to the weights onto themselves when they
    first run.

    Args:
        model: any model; stays as it is.
        kind: a class with the same modules, usually one that inherits from the model's.
    """
    twin = kind.__new__(kind)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(_offloaded(model), model.buffers())}
    memo |= {id(weight): _same_numbers(weight) for weight in model.parameters()}
    quantised = (module for module in model.modules() if type(module).__module__.startswith("bitsandbytes"))
    memo |= {id(module): module for module in quantised}
    memo[id(model)] = twin
    own = {name: value for name, value in model.__dict__.items() if name not in _HOOKED}
    object.__setattr__(twin, "__dict__", copy.deepcopy(own, memo))
    for module in twin.modules():
        module.__dict__.pop("_compiled_call_impl", None)  # compiled from the forward of the original
    hook = model.__dict__.get("_hf_hook")
    if hook is not None:  # accelerate's, on a model that is spread over devices; it wraps forward, which is new
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(twin, copy.copy(hook))
    return twin


def _same_numbers(weight: nn.Parameter) -> nn.Parameter:
    """A parameter of its own on the same storage; quantised and partitioned ones are shared as they are."""
    if type(weight) is not nn.Parameter or is_partitioned(weight):
        return weight
    return nn.Parameter(weight.data, requires_grad=weight.requires_grad)


def _offloaded(model: nn.Module) -> Iterator[Any]:
    """Where accelerate keeps weights that are on no device."""
    for module in model.modules():
        hook = module.__dict__.get("_hf_hook")
        for part in getattr(hook, "hooks", [hook]):
            for name in ("weights_map", "tied_params_map"):
                if getattr(part, name, None) is not None:
                    yield getattr(part, name)


def as_kind(model: nn.Module, kind: type[nn.Module]) -> Any:
    """The same model, seen as an instance of another class: one state, another set of methods."""
    view = kind.__new__(kind)
    object.__setattr__(view, "__dict__", model.__dict__)
    return view
