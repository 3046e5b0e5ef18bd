"""Both stages on a model of transformers that somebody already has: `from llava import compress`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from llava.compression.config import CompressionConfig
from llava.model.compressed_model import adapters
from llava.model.finite import require_finite_model

_BUILT_IN = ("llava_hf", "llava_next", "qwen2_5_vl", "video_llava")


def compress(model: Any, compression: CompressionConfig | str | Mapping[str, Any] | None = None) -> Any:
    """The same model with visual tokens merged after the tower and dropped inside the language model.

    The result has the interface of the model's own class: `forward` on what its processor makes (with labels, so that
    it trains), `generate`, `save_pretrained`. It has modules of its own around the numbers of `model`, which stays as
    it is: nothing is held twice; adapters, data type and device of one do not touch the other; training changes both.

    Args:
        model: `LlavaForConditionalGeneration`, `LlavaNextForConditionalGeneration`,
            `Qwen2_5_VLForConditionalGeneration`, `VideoLlavaForConditionalGeneration`, a LLaVA of this project, or any
            class with an adapter of its own (docs/plug-in.md). Wrap it with peft afterwards.
        compression: an object, a preset's name (`duet-192`), a YAML file or a mapping; `none` gives the stock model.
            None takes the one saved in the model's `config.json`.

    Raises:
        ValueError: for a model of another class, a compression that does not fit it, or weights that are NaN or
            infinite.
    """
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
    from llava.model.shared_copy import shared_copy

    if isinstance(model, LlavaLlamaForCausalLM):
        require_finite_model(model, model.name_or_path or type(model).__name__)
        twin = shared_copy(model, type(model))
        if compression is not None:
            twin.set_compression(CompressionConfig.resolve(compression))
        return twin
    for name in _BUILT_IN:
        importlib.import_module(f"llava.model.families.{name}")
    for adapter in adapters():
        if type(model) in (adapter, getattr(adapter, "stock", None)):
            return adapter.of(model, compression)
    accepted = sorted({adapter.stock.__name__ for adapter in adapters() if hasattr(adapter, "stock")})
    raise ValueError(
        f"The model is a {type(model).__name__}; compress takes {', '.join(accepted)} or LlavaLlamaForCausalLM. Give "
        "the model itself rather than a wrapper around it; docs/plug-in.md says how to add an architecture."
    )
