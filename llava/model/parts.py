"""Parts of a model by the paths of their modules, whatever family it is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

NEWLINE = "image_newline"
"""Weight of LLaVA-NeXT that stands behind the rows of its patch maps."""


def parts_named(model: Any, names: Iterable[str], what: str) -> tuple[nn.Module, ...]:
    """Those of some attributes of `model.model` that are modules, in order.

    Args:
        model: model with its decoder and its tower inside `model.model`, as in transformers.
        names: attributes; one that is absent or None is passed over.
        what: method of the family that should have said it, for the message.

    Raises:
        ValueError: if there is none of them.
    """
    found = tuple(part for name in names if isinstance(part := getattr(model.model, name, None), nn.Module))
    if not found:
        raise ValueError(
            f"{type(model).__name__} does not say {what}, which training, adapters and quantisation ask for; its class "
            "in llava/model/families, or your own, must return those modules (docs/plug-in.md)."
        )
    return found


def paths_of(model: nn.Module, modules: Iterable[nn.Module]) -> tuple[str, ...]:
    """Where modules stand in a model, such as `model.vision_tower`, in their order.

    Raises:
        ValueError: if one of them is no part of the model.
    """
    places = {id(module): path for path, module in model.named_modules()}
    modules = list(modules)
    lost = [module for module in modules if id(module) not in places]
    if lost:
        raise ValueError(f"A {type(lost[0]).__name__} is no part of the {type(model).__name__} that named it.")
    return tuple(places[id(module)] for module in modules)


def lies_in(name: str, paths: Iterable[str]) -> bool:
    """Whether a weight or module of this name is one of some modules, or lies inside one."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def weights_of(model: nn.Module, modules: Iterable[nn.Module]) -> Mapping[str, nn.Parameter]:
    """The weights inside some modules by their names in the model."""
    paths = paths_of(model, modules)
    return {name: weight for name, weight in model.named_parameters() if lies_in(name, paths)}


def bytes_of(weights: Iterable[Tensor]) -> int:
    """Bytes that some weights take."""
    return sum(weight.numel() * weight.element_size() for weight in weights)


def projector_weights(model: Any) -> dict[str, nn.Parameter]:
    """What takes features of towers to the language model, by name: the projectors, and LLaVA-NeXT's `image_newline`.

    Args:
        model: model of any family; peft's model may stand around it.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    newline: Any = getattr(inner.model, NEWLINE, None)
    own: dict[str, nn.Parameter] = {name: weight for name, weight in model.named_parameters() if weight is newline}
    return {**weights_of(model, model.projectors()), **own}
