"""How conversations with their media become what a model takes: one class for each family of models.

A family goes by the `model_type` of its models' `config.json`. One from outside this package is added with

    register_family("my_model", MyInputs)

where `MyInputs` derives from `llava.data.families.base.ModelInputs`; every program that asks a model then asks it so.
"""

from __future__ import annotations

from typing import Any

from llava.data.families.base import ModelInputs
from llava.data.families.llava import LlavaInputs

_FAMILIES: dict[str, type[ModelInputs]] = {"llava_llama": LlavaInputs}


def register_family(model_type: str, family: type[ModelInputs]) -> None:
    """Let models of a type be asked through a family.

    Args:
        model_type: as their `config.json` has it.
        family: makes their inputs.

    Raises:
        ValueError: if models of that type have another family.
    """
    if _FAMILIES.setdefault(model_type, family) is not family:
        known = _FAMILIES[model_type].__name__
        raise ValueError(f"Models of type {model_type!r} are asked through {known} already; choose another model_type.")


def family_of(config: Any) -> type[ModelInputs]:
    """The family of a model.

    Args:
        config: of the model.

    Raises:
        ValueError: if its type has none.
    """
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"There is no family for models of type {config.model_type!r}; known are {', '.join(_FAMILIES)}. Add one "
            "with llava.data.families.register_family."
        )
    return family
