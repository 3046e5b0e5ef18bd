"""Both stages on a model that somebody already has: `from llava import compress`, and the families that it knows."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from llava.common.own_families import import_family
from llava.compression.config import CompressionConfig
from llava.model.call_checks import guard_inner_model
from llava.model.finite import require_finite_model
from llava.model.shared_copy import as_kind, shared_copy
from llava.model.staged_model import StagedModel
from llava.model.varlen_attention import let_pack

_BUILT_IN = {
    "LlavaForConditionalGeneration": "llava_hf",
    "LlavaNextForConditionalGeneration": "llava_next",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe",
    "VideoLlavaForConditionalGeneration": "video_llava",
}
"""Modules of `llava.model.families` by the class they are for; one is imported when it is asked for."""
_OPENED_AS_LLAVA = ("llava_hf", "video_llava")
"""Those whose folders become models of LLaVA's own when they are opened by path."""
_FAMILIES: dict[type, type[CompressedModel]] = {}  # by the class of transformers that each stands for


class CompressedModel(StagedModel):
    """Stands before a class of transformers, `stock`, among the bases; see `StagedModel` for what a subclass says.

    A subclass that names a `stock` is registered when it is defined; `register_family` does it by hand.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "stock" in vars(cls):
            register_family(cls)

    @classmethod
    def of(cls, model: Any, compression: CompressionConfig | str | Mapping[str, Any] | None) -> Any:
        """A compressed model around the weights of a stock one; see `llava.compress`."""
        require_finite_model(model, getattr(model, "name_or_path", "") or type(model).__name__)
        twin = shared_copy(model, cls)
        guard_inner_model(twin)
        let_pack(twin.decoder.config)
        twin.set_compression(getattr(model.config, "compression", None) if compression is None else compression)
        return twin

    @classmethod
    def from_pretrained(cls, *args: Any, compression: Any = None, **kwargs: Any) -> Any:
        """Opens a folder as the class of transformers does, with its saved compression unless another is given."""
        loaded = cls.stock.from_pretrained(*args, **kwargs)
        if isinstance(loaded, tuple):
            return cls.of(loaded[0], compression), *loaded[1:]
        return cls.of(loaded, compression)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves as the class of transformers does, which can open the folder; `config.json` carries the compression."""
        as_kind(self, self.stock).save_pretrained(*args, **kwargs)


def register_family(family: type[CompressedModel]) -> type[CompressedModel]:
    """Let `compress` use a family for models of its `stock` class, instead of any that did before.

    Args:
        family: a class with `stock` among its bases. Works as a decorator, in any package.

    Raises:
        TypeError: if what a family must say is missing; names it.
    """
    for name in ("stock", "visual_inputs", "visual_spans", "forward"):
        inherited = (getattr(StagedModel, name, None), getattr(getattr(family, "stock", None), name, None))
        if getattr(family, name, None) in inherited:
            raise TypeError(f"{family.__name__} does not say {name}, which a family must; see docs/plug-in.md.")
    if not issubclass(family, family.stock):
        raise TypeError(f"{family.__name__} names {family.stock.__name__} as stock, but does not inherit from it.")
    _FAMILIES[family.stock] = family
    return family


def built_in_types() -> tuple[str, ...]:
    """The `model_type`s of transformers whose models stay transformers' here, and have a family in this package."""
    return tuple(module for module in _BUILT_IN.values() if module not in _OPENED_AS_LLAVA)


def family_of_folder(model_type: Any, named: Sequence[str], is_llava: bool) -> type[CompressedModel] | None:
    """The family that opens a folder, by its `config.json`; None for what LLaVA's own model opens.

    Families of other packages are those that were imported, and those that a package names as its own for this type
    (`llava.common.own_families`).

    Args:
        model_type: `model_type` of the file.
        named: its `architectures`; a class that is named there decides.
        is_llava: whether LLaVA's own model opens this type, if no class of another package is named.

    Raises:
        ValueError: if what another package names cannot be imported.
    """
    if model_type in built_in_types():
        importlib.import_module(f"llava.model.families.{model_type}")
    import_family(model_type)
    known: Mapping[Any, type[CompressedModel]] = families()
    own = [stock for stock in known if not (is_llava and stock.__module__.startswith("transformers."))]
    found = [stock for stock in own if stock.__name__ in named]
    found += [stock for stock in own if not is_llava and stock.config_class.model_type == model_type]
    return known[found[0]] if found else None


def families() -> Mapping[type, type[CompressedModel]]:
    """The families that are registered, by the class of transformers they stand for."""
    return dict(_FAMILIES)


def compress(model: Any, compression: CompressionConfig | str | Mapping[str, Any] | None = None) -> Any:
    """The same model with visual tokens merged after the tower and dropped inside the language model.

    The result has the interface of the model's own class: `forward` on what its processor makes (with labels, so that
    it trains), `generate`, `save_pretrained`. It has modules of its own around the numbers of `model`, which stays as
    it is: nothing is held twice; adapters, data type and device of one do not touch the other; training changes both.

    Args:
        model: one of those in the table of docs/plug-in.md, a LLaVA of this project, or any class with a registered
            family of its own. Wrap it with peft afterwards.
        compression: an object, a preset's name (`duet-192`), a YAML file or a mapping; `none` gives the stock model.
            None takes the one saved in the model's `config.json`.

    Raises:
        ValueError: for a model of another class, a compression that does not fit it, or weights that are NaN or
            infinite.
    """
    if isinstance(model, StagedModel):
        require_finite_model(model, model.name_or_path or type(model).__name__)
        twin = shared_copy(model, type(model))
        if compression is not None:
            twin.set_compression(compression)
        return twin
    name = type(model).__name__
    if type(model) not in families() and name in _BUILT_IN:
        importlib.import_module(f"llava.model.families.{_BUILT_IN[name]}")
    family = families().get(type(model))
    if family is not None:
        return family.of(model, compression)
    accepted = sorted({*_BUILT_IN, *(stock.__name__ for stock in families())})
    raise ValueError(
        f"The model is a {name}; compress takes {', '.join(accepted)} or LlavaLlamaForCausalLM. Give "
        "the model itself rather than a wrapper around it; docs/plug-in.md says how to add a family."
    )
