"""Opening a checkpoint directory: tokenizer, model, image processor and context length, as LLaVA's users call it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava.compression.config import CompressionConfig
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.llava_arch import load_projector
from llava.model.loading import PROJECTOR_FILE
from llava.model.lora import base_model_of, is_lora_folder, merge_lora
from llava.model.quantization import bitsandbytes_config

logger = logging.getLogger(__name__)

DEFAULT_CONTEXT_LENGTH = 2048


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    compression: CompressionConfig | str | dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM, CLIPImageProcessorPil, int]:
    """Open a directory that this project wrote: a whole model, or a projector over a base language model.

    What the directory holds decides, not its name. The compression saved in `config.json` is the model's budget.

    Args:
        model_path: directory with `config.json` and weights, with `config.json` and `mm_projector.bin`, or with LoRA
            adapters, which are merged.
        model_base: language model that a projector or LoRA directory belongs to; for LoRA, by default the one that
            the adapters recorded.
        model_name: accepted for LLaVA's sake.
        load_8bit, load_4bit: quantise the language model with bitsandbytes; tower and projector stay as they are.
        device_map: as in transformers. Without a GPU the model goes to the CPU whatever this says.
        device: "cuda" (also ROCm) or "cpu".
        use_flash_attn: use FlashAttention-2 instead of PyTorch's SDPA.
        compression: instead of the saved one: an object, preset's name, YAML file or mapping.
        kwargs: to transformers' `from_pretrained`, such as `dtype`.

    Returns:
        tokenizer, model in eval mode, image processor, context length in tokens.

    Raises:
        ValueError: if the directory holds none of these, a projector directory comes without `model_base`, or LoRA
            adapters are asked for in 4 or 8 bits.
    """
    folder = Path(model_path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model_path!r} has no config.json; give a directory that training wrote.")
    options = _loading_options(device_map, device, load_8bit, load_4bit, use_flash_attn, kwargs)
    if is_lora_folder(folder):
        tokenizer, model = _load_lora_directory(folder, model_base, options)
    elif (folder / PROJECTOR_FILE).is_file():
        tokenizer, model = _load_projector_directory(folder, model_base, options)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        model = LlavaLlamaForCausalLM.from_pretrained(model_path, **options)
    if compression is not None:
        model.set_compression(CompressionConfig.resolve(compression))
    context = getattr(model.config, "max_sequence_length", None)
    context = context or getattr(model.config, "tokenizer_model_max_length", None) or DEFAULT_CONTEXT_LENGTH
    return tokenizer, model.eval(), _image_processor(folder, model), context


def _loading_options(
    device_map: Any, device: str, load_8bit: bool, load_4bit: bool, use_flash_attn: bool, given: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of `from_pretrained`; LLaVA's default of float16 holds on a GPU, float32 on a CPU."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if not on_gpu:
        if device != "cpu":
            logger.warning("There is no GPU; the model is loaded on the CPU in float32.")
        device_map = "cpu"
    elif device != "cuda":
        device_map = {"": device}
    options = {"dtype": torch.float16 if on_gpu else torch.float32, "device_map": device_map, **given}
    if "torch_dtype" in options:
        options["dtype"] = options.pop("torch_dtype")
    if use_flash_attn:
        options["attn_implementation"] = "flash_attention_2"
    if load_8bit or load_4bit:
        options["quantization_config"] = bitsandbytes_config(4 if load_4bit else 8, options["dtype"])
    return options


def _load_projector_directory(
    folder: Path, model_base: str | None, options: dict[str, Any]
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM]:
    """A pre-trained projector, its tower, and the language model it was trained with."""
    if model_base is None:
        raise ValueError(
            f"{str(folder)!r} holds only a projector ({PROJECTOR_FILE}); give the language model it was trained with "
            "as model_base."
        )
    config = LlavaConfig.from_pretrained(folder)
    model = LlavaLlamaForCausalLM.from_pretrained(model_base, config=config, **options)
    load_projector(model.get_model().mm_projector, str(folder / PROJECTOR_FILE))
    return AutoTokenizer.from_pretrained(model_base), model


def _load_lora_directory(
    folder: Path, model_base: str | None, options: dict[str, Any]
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM]:
    """Adapters merged into the model they were trained on, with the projector and the budget of the adapters."""
    base = model_base or base_model_of(folder)
    if base is None:
        raise ValueError(f"{str(folder)!r} holds LoRA adapters without their model's name; give it as model_base.")
    config = LlavaConfig.from_pretrained(folder)
    model = LlavaLlamaForCausalLM.from_pretrained(base, config=config, **options)
    merged = merge_lora(model, folder)
    own = (folder / "tokenizer_config.json").is_file()
    return AutoTokenizer.from_pretrained(folder if own else base), merged


def _image_processor(folder: Path, model: LlavaLlamaForCausalLM) -> CLIPImageProcessorPil:
    if (folder / "preprocessor_config.json").is_file():
        return CLIPImageProcessorPil.from_pretrained(folder)
    tower = model.get_vision_tower()
    if tower is None:
        raise ValueError(f"{str(folder)!r} names no vision tower (mm_vision_tower in config.json); it is not a LLaVA.")
    return tower.image_processor
