"""Files of compression configurations: the presets, and for which models a file was made.

Budgets and depths mean nothing on a model of another family or depth. What a configuration may hold is not known here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

from llava.common.shown import shown

FAMILIES = {
    "llava-1.5": ("llava", "llava_llama", "llava_mistral", "llama", "mistral"),
    "llava-next": ("llava_next",),
    "video-llava": ("video_llava",),
    "qwen2.5-vl": ("qwen2_5_vl",),
    "qwen3-vl": ("qwen3_vl",),
    "llava-onevision": ("llava_onevision",),
}
"""The `model_type` that transformers (or this project) gives the models of each family; a bare language model is the
LLaVA that training makes of it."""


def family_of(model_type: str) -> str:
    """The family of a `model_type`; one that no family has is its own."""
    return next((family for family, kinds in FAMILIES.items() if model_type in kinds), model_type)


@dataclass(frozen=True)
class MadeFor:
    """What a compression file says under `for`.

    Attributes:
        preset: name of the file; None of a mapping that came from none.
        families: keys of `FAMILIES`.
        layers: number of layers of the decoder; None where any number will do.
    """

    preset: str | None
    families: tuple[str, ...]
    layers: int | None = None

    @classmethod
    def of(cls, preset: str | None, data: Any) -> MadeFor:
        """Read a mapping `{family: llava-1.5, layers: 32}`; there may be a list of families, and no layers.

        Raises:
            ValueError: if it is anything else.
        """
        if not isinstance(data, Mapping) or not set(data) <= {"family", "layers"} or "family" not in data:
            raise ValueError(f"for is {shown(data)}; it must be a mapping such as {{family: llava-1.5, layers: 32}}.")
        named, layers = data["family"], data.get("layers")
        families = tuple(named) if isinstance(named, list | tuple) else (named,)
        unknown = [family for family in families if not isinstance(family, str) or family not in FAMILIES]
        if unknown or not families:
            wrong = unknown[0] if unknown else named
            raise ValueError(
                f"for.family is {shown(wrong)}; it must be one of {', '.join(FAMILIES)}, or a list of these."
            )
        if layers is not None and (isinstance(layers, bool) or not isinstance(layers, int) or layers < 1):
            raise ValueError(f"for.layers is {shown(layers)}; it must be a whole number of at least 1.")
        return cls(preset, families, layers)

    def check(self, model_type: str, num_layers: int) -> None:
        """Refuse a model of another family or depth.

        Args:
            model_type: as the model's `config.json` has it.
            num_layers: number of layers of its decoder.

        Raises:
            ValueError: says what the preset is for, what the model is, and what to give instead.
        """
        family = family_of(model_type)
        if family in self.families and self.layers in (None, num_layers):
            return
        depth = "" if self.layers is None else f" with {self.layers} decoder layers"
        differs = [] if family in self.families else [f"this is a {family}"]
        differs += [] if self.layers in (None, num_layers) else [f"the decoder has {num_layers} layers"]
        subject, copied = "This compression", "it"
        if self.preset is not None:
            subject, copied = f"The compression {self.preset}", f"{self.preset}.yaml"
        raise ValueError(
            f"{subject} is made for {' or '.join(self.families)}{depth}, but {', and '.join(differs)}. Give a preset "
            f"for it, or a YAML file of your own (a copy of {copied} without the line `for`) with tokens and layers "
            "that suit this model."
        )


def presets() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in _preset_folder().iterdir() if entry.name.endswith(".yaml")
    )


class FromFiles(ABC):
    """What a configuration can be made of, beside its fields: a preset's name, a YAML file, or a mapping."""

    made_for: MadeFor | None

    @classmethod
    @abstractmethod
    def from_dict(cls, data: Mapping[str, Any] | None, preset: str | None = None) -> Self:
        """Build from a mapping, which the file of `preset` held; refuse with a ValueError what it may not hold."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file in the format of `configs/compression/*.yaml`.

        Raises:
            ValueError: if there is no such file, or it does not hold a configuration.
        """
        from llava.common.yaml_files import read_yaml

        if not os.path.lexists(path):
            raise ValueError(
                f"There is no compression file {shown(str(path))}; give a YAML file or one of {', '.join(presets())}."
            )
        return cls._from_value(read_yaml(path), str(path))

    @classmethod
    def from_preset(cls, name: str) -> Self:
        """Read a named preset, such as `duet-192` (paper Table 12).

        Raises:
            ValueError: if there is no such preset.
        """
        from llava.common.yaml_files import parse_yaml

        if name not in presets():
            raise ValueError(
                f"There is no compression preset {shown(name)}; accepted names are {', '.join(presets())}."
            )
        return cls._from_value(parse_yaml(_preset_folder().joinpath(f"{name}.yaml").read_text("utf-8"), name), name)

    @classmethod
    def resolve(cls, source: Self | Mapping[str, Any] | str | Path | None) -> Self:
        """Accept whatever names a configuration: an object, a mapping, a preset's name or a YAML file's path."""
        if isinstance(source, cls):
            return source
        if source is None or isinstance(source, Mapping):
            return cls.from_dict(source)
        looks_like_a_file = isinstance(source, Path) or str(source).endswith((".yaml", ".yml"))
        return cls.from_yaml(str(source)) if looks_like_a_file else cls.from_preset(str(source))

    @classmethod
    def _from_value(cls, data: Any, origin: str) -> Self:
        if data is not None and not isinstance(data, Mapping):
            raise ValueError(f"{origin} must hold a mapping with the keys v2v and t2v, not {shown(data)}.")
        try:
            return cls.from_dict(data, Path(origin).stem)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error

    def check_made_for(self, model_type: str, num_layers: int) -> None:
        """Refuse a preset that was made for other models (`MadeFor.check`); what came from no such file fits any."""
        if self.made_for is not None:
            self.made_for.check(model_type, num_layers)


def data_folder(package: str, held: str, checkout: str) -> Any:
    """A folder of data files: package data in a wheel, a folder under `configs` in a checkout.

    Args:
        package: that holds them in a wheel.
        held: name of one of them.
        checkout: name of the folder under `configs`.
    """
    try:
        folder = resources.files(package)
        if folder.joinpath(held).is_file():
            return folder
    except ModuleNotFoundError:
        pass
    return Path(__file__).resolve().parents[2] / "configs" / checkout


def _preset_folder() -> Any:
    return data_folder("llava.compression.presets", "none.yaml", "compression")
