"""Vision-language models that never carry the visual tokens they do not need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.compressed_model import compress

__all__ = ["compress"]


def __getattr__(name: str) -> Any:
    """Import `compress` when it is asked for: the method alone needs no transformers."""
    if name == "compress":
        from llava.model.compressed_model import compress

        return compress
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
