"""Files of compression configurations: the presets, and for which models a file was made.

Budgets and depths mean nothing on a model of another family or depth. What a configuration may hold is not known here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Self

from llava.common.own_families import is_named
from llava.common.shown import shown

FAMILIES = {
    "llava-1.5": ("llava", "llava_llama", "llava_mistral", "llama", "mistral"),
    "llava-next": ("llava_next",),
    "video-llava": ("video_llava",),
    "qwen2.5-vl": ("qwen2_5_vl",),
    "qwen3-vl": ("qwen3_vl", "qwen3_vl_moe"),
    "llava-onevision": ("llava_onevision",),
}
"""The `model_type` that transformers (or this project) gives the models of each family; a bare language model is the
LLaVA that training makes of it. LLaVA's own format has one type for three families, see `family_of`."""


def is_onevision_layout(config: Mapping[str, Any]) -> bool:
    """Whether the content of a `config.json` is that of a LLaVA on Qwen in LLaVA-NeXT's own layout.

    Only LLaVA-OneVision is known of these; see `llava.common.onevision_layout`.
    """
    named = config.get("architectures")
    of_class = isinstance(named, list) and "LlavaQwenForCausalLM" in named
    return "text_config" not in config and (of_class or config.get("model_type") == "llava_qwen")


def require_known(config: Mapping[str, Any], place: str) -> None:
    """Refuse the `config.json` of a model that no family is for; one without a `model_type` is LLaVA's.

    Args:
        config: content of the file.
        place: where it stands, for the message.

    Raises:
        ValueError: says what is accepted.
    """
    kind, known = config.get("model_type"), [kind for kinds in FAMILIES.values() for kind in kinds]
    if kind is None or kind in known or is_onevision_layout(config) or is_named(kind):
        return
    raise ValueError(
        f"model_type in {place} is {shown(kind)}; accepted are {', '.join(known)}, and what an installed package has a "
        "family for (docs/plug-in.md)."
    )


def family_of(model: Any) -> str:
    """The family of a model: a key of `FAMILIES`, else the `model_type` itself.

    Args:
        model: its configuration (an object, or what its `config.json` holds), its `model_type` alone, or a family.

    In LLaVA's own format a model with `mm_video_tower` is a Video-LLaVA, and one whose `image_aspect_ratio` is `anyres`
    or `anyres_max_N` a LLaVA-NeXT; a bare `model_type` cannot tell these from LLaVA-1.5. A LLaVA on Qwen in the layout
    of LLaVA-NeXT's program is a LLaVA-OneVision.
    """
    if isinstance(model, str):
        model = {"model_type": model}
    if isinstance(model, Mapping) and is_onevision_layout(model):
        return "llava-onevision"
    say = model.get if isinstance(model, Mapping) else lambda name: getattr(model, name, None)
    kind = str(say("model_type"))
    family = next((family for family, kinds in FAMILIES.items() if kind in kinds), kind)
    if family != "llava-1.5":
        return family
    if say("mm_video_tower"):
        return "video-llava"
    return "llava-next" if str(say("image_aspect_ratio")).startswith("anyres") else family


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

    def check(self, model: Any, num_layers: int) -> None:
        """Refuse a model of another family or depth.

        Args:
            model: as in `family_of`.
            num_layers: number of layers of its decoder.

        Raises:
            ValueError: says what the preset is for, what the model is, and what to give instead.
        """
        family = family_of(model)
        if family in self.families and self.layers in (None, num_layers):
            return
        depth = "" if self.layers is None else f" with {self.layers} decoder layers"
        differs = [] if family in self.families else [f"this is a {family}"]
        differs += [] if self.layers in (None, num_layers) else [f"the decoder has {num_layers} layers"]
        subject, copied = "This compression", "it"
        if self.preset is not None:
            subject, copied = f"The compression {self.preset}", f"{self.preset}.yaml"
        moved = "its layers in proportion (--scale-to-depth, CompressionConfig.scaled_to), "
        raise ValueError(
            f"{subject} is made for {' or '.join(self.families)}{depth}, but {', and '.join(differs)}. Give a preset "
            f"for it, {moved if family in self.families else ''}or a YAML file of your own (a copy of {copied} without "
            "the line `for`) with tokens and layers that suit this model."
        )


def presets() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in _preset_folder().iterdir() if entry.name.endswith(".yaml")
    )


class FromFiles(ABC):
    """What a configuration can be made of, beside its fields: a preset's name, a YAML file, or a mapping."""

    made_for: MadeFor | None
    t2v: Any

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

    def check_made_for(self, model: Any, num_layers: int) -> None:
        """Refuse a preset that was made for other models (`MadeFor.check`); what came from no such file fits any."""
        if self.made_for is not None:
            self.made_for.check(model, num_layers)

    def scaled_to(self, num_layers: int) -> Self:
        """The same for a decoder of another depth: the same shares, dropped at the same part of the way through it.

        A drop after `l` of the L layers that the file is made for comes after `l * num_layers / L`, rounded (a half
        upwards). What drops nothing, or is made for any depth, stays as it is.

        Args:
            num_layers: number of layers of the decoder.

        Returns:
            a configuration that is made for this depth, and for the families of the file.

        Raises:
            ValueError: if it does not say for which depth its layers are, or so few layers keep no two drops apart.
        """
        made = self.made_for
        if self.t2v is None or made is None or made.layers is None or made.layers == num_layers:
            if self.t2v is not None and made is None:
                raise ValueError(
                    f"Layers {list(self.t2v.layers)} cannot be scaled to a decoder of {num_layers}: nothing says for "
                    "which depth they are. Give a preset, or write such as `for: {family: llava-1.5, layers: 32}` into "
                    "the YAML file."
                )
            return self
        layers = tuple((2 * layer * num_layers + made.layers) // (2 * made.layers) for layer in self.t2v.layers)
        if not all(first < second for first, second in zip((0, *layers), (*layers, num_layers), strict=True)):
            raise ValueError(
                f"Layers {list(self.t2v.layers)} of {made.layers} become {list(layers)} of {num_layers}: so few layers "
                "do not keep the drops apart. Give a YAML file of your own with layers that suit this model."
            )
        return replace(  # type: ignore[type-var]  # a dataclass, as every configuration
            self, t2v=replace(self.t2v, layers=layers), made_for=replace(made, layers=num_layers)
        )


def stage_of(kind: Any, name: str, data: Any) -> Any:
    """A stage: an object of the dataclass `kind`, made of a mapping of its fields; such an object or None is returned.

    Raises:
        ValueError: for keys that are unknown or missing under `name`, or values out of range.
    """
    if data is None or isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise ValueError(f"{name} must be a mapping or null, not {shown(data)}.")
    known = fields(kind)
    accepted = [field.name for field in known]
    unknown = sorted(set(data) - set(accepted), key=str)
    if unknown:
        key = shown(unknown[0])[1:-1] if isinstance(unknown[0], str) else shown(unknown[0])
        raise ValueError(f"Unknown key {name}.{key}; accepted keys are {', '.join(accepted)}.")
    missing = [field.name for field in known if field.default is MISSING and field.name not in data]
    if missing:
        raise ValueError(f"{name}.{missing[0]} is missing; {name} needs it.")
    return kind(**data)


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
