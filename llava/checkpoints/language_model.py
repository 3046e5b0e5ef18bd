"""Writes the language model of a vision-language model alone, for engines that get prompts as embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from transformers import LlamaConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llava.checkpoints.conversion import appearing_at_once, require_new
from llava.checkpoints.transformers_format import text_fields
from llava.model.llava_config import LlavaConfig

_OF_THE_TEXT = ("embed_tokens.", "layers.", "norm.")


def write_language_model(model: Any, tokenizer: PreTrainedTokenizerBase, target: Path) -> Path:
    """Write the language model with its head; `target` appears as a whole or not at all.

    Args:
        model: an opened model of any family.
        tokenizer: its tokenizer.
        target: new folder.

    Returns:
        the folder.

    Raises:
        ValueError: if `target` is not empty, the model is quantised, or transformers has no language model of that
            kind by itself.
    """
    require_new(target)
    if getattr(model, "quantization_method", None) is not None:
        raise ValueError(
            "--language-model writes the weights as they are opened, and those of 4 or 8 bits mean nothing to other "
            "programs; leave --load-4bit and --load-8bit out, and name a model that is not quantised."
        )
    config = text_config_of(model.config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"transformers has no language model for a {type(config).__name__} by itself; --language-model is for "
            "models on Llama, Mistral and Qwen2."
        )
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    config.dtype = model.dtype
    # A LLaVA on Llama keeps tower and projector among the modules of its decoder.
    weights = model.decoder.state_dict().items()
    state = {f"model.{name}": weight for name, weight in weights if name.startswith(_OF_THE_TEXT)}
    if not config.tie_word_embeddings:
        state["lm_head.weight"] = model.lm_head.weight.detach()
    with appearing_at_once(target) as folder:
        save_torch_state_dict(state, folder)
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return target


def text_config_of(config: Any) -> Any:
    """The configuration of the language model alone."""
    return LlamaConfig(**text_fields(config)) if isinstance(config, LlavaConfig) else config.get_text_config()
