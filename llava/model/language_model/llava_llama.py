"""LLaVA's module path: its classes and configuration, which stand in `llava.model.families.llava`."""

from llava.model.families.llava import LlavaLlamaForCausalLM, LlavaLlamaModel
from llava.model.llava_config import LlavaConfig

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaLlamaModel"]
