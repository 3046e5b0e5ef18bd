"""Both stages on a model that somebody already has: `from llava import compress`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from llava.compression.config import CompressionConfig
from llava.model.compressed_model import families
from llava.model.finite import require_finite_model
from llava.model.shared_copy import shared_copy
from llava.model.staged_model import StagedModel

_BUILT_IN = {
    "LlavaForConditionalGeneration": "llava_hf",
    "LlavaNextForConditionalGeneration": "llava_next",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "VideoLlavaForConditionalGeneration": "video_llava",
}
"""Modules of `llava.model.families` by the class they are for; one is imported when it is asked for."""


def compress(model: Any, compression: CompressionConfig | str | Mapping[str, Any] | None = None) -> Any:
    """The same model with visual tokens merged after the tower and dropped inside the language model.

    The result has the interface of the model's own class: `forward` on what its processor makes (with labels, so that
    it trains), `generate`, `save_pretrained`. It has modules of its own around the numbers of `model`, which stays as
    it is: nothing is held twice; adapters, data type and device of one do not touch the other; training changes both.

    Args:
        model: `LlavaForConditionalGeneration`, `LlavaNextForConditionalGeneration`,
            `Qwen2_5_VLForConditionalGeneration`, `VideoLlavaForConditionalGeneration`, a LLaVA of this project, or any
            class with a registered family of its own (docs/plug-in.md). Wrap it with peft afterwards.
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
