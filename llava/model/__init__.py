"""Compressed models: LLaVA and other families with V2V behind the tower and T2V between decoder layers."""

from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM, LlavaLlamaModel
from llava.model.llava_config import LlavaConfig

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaLlamaModel"]
