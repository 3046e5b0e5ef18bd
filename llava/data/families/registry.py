"""Which family makes the inputs of which models, by the `model_type` of their configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llava.common.own_families import import_family

if TYPE_CHECKING:
    from llava.data.families.base import ModelInputs

_FAMILIES: dict[str, type[ModelInputs]] = {}
"""By `model_type`."""


def register_inputs(family: type[ModelInputs]) -> type[ModelInputs]:
    """Let models of its `model_types` be asked and trained through a family, instead of any that was before.

    Args:
        family: works as a decorator, in any package.

    Raises:
        TypeError: if it names no type.
    """
    if not family.model_types:
        raise TypeError(f"{family.__name__} does not say model_types, which a family must; see docs/plug-in.md.")
    _FAMILIES.update(dict.fromkeys(family.model_types, family))
    return family


def family_of(config: Any) -> type[ModelInputs]:
    """The family of a model with this configuration; ValueError if its type has none."""
    if config.model_type not in _FAMILIES:
        import_family(config.model_type)
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"There is no family for models of type {config.model_type!r}; known are {', '.join(_FAMILIES)}. A class "
            "of llava.data.families.ModelInputs with it among its model_types adds one."
        )
    return next((shape for shape in family.__subclasses__() if shape.serves(config)), family)
