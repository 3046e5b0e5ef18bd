"""The configuration of LLaVA on Llama: that of the language model, LLaVA's fields, and the compression block."""

from __future__ import annotations

from transformers import AutoConfig, LlamaConfig


class LlavaLlamaConfig(LlamaConfig):
    """Llama's configuration plus LLaVA's (`mm_*`) and the compression block.

    transformers looks models up by the name of this class, and has a `LlavaConfig` of its own.
    """

    model_type = "llava_llama"
    keys_to_ignore_at_inference = ["past_key_values", "cache", "layouts", "scores"]  # noqa: RUF012 (theirs)


LlavaConfig = LlavaLlamaConfig
"""LLaVA's name for it."""

AutoConfig.register("llava_llama", LlavaConfig)
