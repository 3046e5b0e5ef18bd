"""A model of transformers with both stages inside, and how the class that does it for a model is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.compression.config import CompressionConfig
from llava.model.call_checks import guard_inner_model
from llava.model.finite import require_finite_model
from llava.model.shared_copy import as_kind, shared_copy
from llava.model.staged_model import StagedModel

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
        twin.set_compression(getattr(model.config, "compression", None) if compression is None else compression)
        return twin

    @classmethod
    def from_pretrained(cls, *args: Any, compression: Any = None, **kwargs: Any) -> Any:
        """As the class of transformers, with the compression saved in `config.json` unless another is given."""
        loaded = cls.stock.from_pretrained(*args, **kwargs)
        if isinstance(loaded, tuple):
            return cls.of(loaded[0], compression), *loaded[1:]
        return cls.of(loaded, compression)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As the class of transformers, which can open the directory; `config.json` carries the compression."""
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


def families() -> Mapping[type, type[CompressedModel]]:
    """The families that are registered, by the class of transformers they stand for."""
    return dict(_FAMILIES)
