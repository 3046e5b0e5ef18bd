"""Opening any checkpoint by what its folder holds: a model with both stages, and what its inputs are made with."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from llava.checkpoints.contents import HUB_OPTIONS, Checkpoint, Kind, examine, fetch
from llava.checkpoints.family_format import load_family, load_family_over
from llava.checkpoints.fit import on_meta
from llava.checkpoints.llava_format import image_processor_of, load_over, load_whole, tokenizer_of
from llava.checkpoints.lora import ADAPTER_FILES, NON_LORA_FILE, base_model_of
from llava.checkpoints.processors import processor_of
from llava.checkpoints.settings_files import needing_packages
from llava.checkpoints.tokenizer import stop_at_end_mark
from llava.compression.config import CompressionConfig
from llava.conversation import recorded_template
from llava.model.experts import experts_of
from llava.model.families.llava import LlavaLlamaForCausalLM
from llava.model.finite import not_finite, require_finite_model
from llava.model.parts import paths_of
from llava.model.weights import read_state_dict

logger = logging.getLogger(__name__)

DEFAULT_CONTEXT_LENGTH = 2048
_DTYPES = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
}


class Opened(NamedTuple):
    """A model that was opened, and what goes with it.

    Attributes:
        model: the opened model, in eval mode.
        preprocessor: makes pixels: the image processor of a LLaVA (None without a vision tower), and transformers'
            processor of any other family (after a warning, where a package is not installed that it needs for videos,
            its parts for images alone, see `llava.checkpoints.processors`; None where there are none of these).
        tokenizer: tokenizer of the language model.
        context: tokens that the model was made for.
    """

    model: Any
    preprocessor: Any
    tokenizer: PreTrainedTokenizerBase
    context: int


def open_model(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    bits: int = 16,
    device: str = "cuda",
    device_map: Any = "auto",
    compression: CompressionConfig | str | Mapping[str, Any] | None = None,
    **options: Any,
) -> Opened:
    """Open a model of any family, a projector or LoRA adapters over a LLaVA, or a plain Llama.

    What the folder holds decides, not its name. The compression saved in `config.json` is the model's budget. No
    weight is ever made up: one that is missing, unknown, of another shape or not finite is an error.

    Args:
        path: folder, or name on the hub, of a whole model, of a projector (`config.json` and `mm_projector.bin`), or
            of LoRA adapters, which are merged. A LLaVA in transformers' format becomes one of LLaVA's own; models of
            other families (`llava.model.families`, and anybody's own) stay transformers' with both stages inside.
        base: model that a projector or adapters belong to, a language model or a LLaVA; for LoRA, by default the one
            that the adapters recorded.
        name: LLaVA's name rules are applied to it where `config.json` says no `model_type`; by default to the folder's
            name.
        bits: 8 or 4 quantise the language model with bitsandbytes; towers and projectors stay as they are.
        device: "cuda" (also ROCm) or "cpu".
        device_map: as in transformers. Without a GPU the model goes to the CPU, unless this is a mapping.
        compression: compression used instead of the saved one: an object, preset's name, YAML file or mapping.
        options: to transformers' `from_pretrained`, such as `dtype` (also as `torch_dtype`, or as text) and
            `attn_implementation`, and where to fetch from: `cache_dir`, `revision`, `token`, `local_files_only`.

    Raises:
        ValueError: if there is nothing to open, a weight does not fit or is NaN or infinite, a base is needed and not
            given or another one, or LoRA adapters are asked for in 4 or 8 bits.
    """
    hub = {option: options.pop(option) for option in HUB_OPTIONS if option in options}
    options = _loading_options(device_map, device, options)
    path, base = os.fspath(path), None if base is None else os.fspath(base)
    checkpoint, under = resolve(path, base, name, **hub)
    whole = checkpoint if under is None else under
    if checkpoint.kind is Kind.LORA and (bits != 16 or "quantization_config" in options):
        raise ValueError(
            f"{str(checkpoint.folder)!r} holds LoRA adapters, and merging them into 4 or 8 bits would round the "
            "result; merge them with scripts/merge_lora_weights.py and open the merged model in 4 or 8 bits."
        )
    with needing_packages(f"Opening {path!r}"):
        if bits != 16:
            compute = options["dtype"]
            if compute == "auto":
                compute = torch.float32 if options["device_map"] == "cpu" else torch.float16
            options["quantization_config"] = bitsandbytes_config(bits, compute, kept=never_quantised(whole))
        model = _load(checkpoint, under, options)
    try:
        require_finite_model(model, path)
    except ValueError as error:
        raise ValueError(f"{error}{_faulty_file(checkpoint, under)}") from None
    of_family = whole.kind is Kind.FAMILY
    if of_family and under is None:
        model = whole.family.of(model, compression)
    elif compression is not None:
        model.set_compression(compression)
    model.eval()
    if of_family:
        processor, tokenizer = processor_of(model.config, checkpoint.folder, whole.folder)
        return Opened(model, processor, tokenizer, model.config.get_text_config().max_position_embeddings)
    tokenizer, config = tokenizer_of(checkpoint, under, model), model.config
    stop_at_end_mark(model.generation_config, tokenizer, recorded_template(config))
    context = config.max_sequence_length or config.tokenizer_model_max_length or DEFAULT_CONTEXT_LENGTH
    return Opened(model, image_processor_of(checkpoint, under, model), tokenizer, context)


def _load(checkpoint: Checkpoint, base: Checkpoint | None, options: dict[str, Any]) -> Any:
    """The model of a checkpoint, whole or over its base; that of another family is compressed in the latter case."""
    if base is not None:
        over = load_family_over if base.kind is Kind.FAMILY else load_over
        return over(base, checkpoint, options)
    if checkpoint.kind is Kind.FAMILY:
        return load_family(checkpoint, options)
    return load_whole(checkpoint, checkpoint.config, options)


def _faulty_file(checkpoint: Checkpoint, base: Checkpoint | None) -> str:
    """Which of the files that a model was made of holds NaN or infinity, as a sentence; "" where none does."""
    own = [checkpoint.folder / name for name in (*ADAPTER_FILES, NON_LORA_FILE)] if checkpoint.kind is Kind.LORA else []
    for path in (*checkpoint.files, *filter(Path.is_file, own), *(() if base is None else base.files)):
        names = not_finite(read_state_dict(path).items())
        if names:
            return f" {str(path)!r} holds it as {names[0]}."
    return ""


def resolve(
    path: str, base: str | None = None, name: str | None = None, **hub: Any
) -> tuple[Checkpoint, Checkpoint | None]:
    """The checkpoint at a path or hub name, and the one that it goes on top of, if it is not whole.

    Raises:
        ValueError: if one of them cannot be opened, or a base is needed and not named.
    """
    checkpoint = examine(fetch(path, **hub), name)
    if not checkpoint.needs_base:
        if base is not None:
            logger.warning("%s is %s by itself; model_base is not used.", checkpoint.folder, checkpoint.kind)
        return checkpoint, None
    if base is None and checkpoint.kind is Kind.LORA:
        base = base_model_of(checkpoint.folder)
    if base is None:
        what = f"a projector ({checkpoint.files[0].name})" if checkpoint.files else "LoRA adapters"
        raise ValueError(
            f"{str(checkpoint.folder)!r} holds only {what}; give the language model it was trained with as model_base."
        )
    under = examine(fetch(base, **{option: value for option, value in hub.items() if option != "revision"}))
    if under.needs_base:
        raise ValueError(f"model_base {base!r} holds only {under.kind}; give a whole model.")
    if under.kind is Kind.FAMILY and checkpoint.config is not None and checkpoint.family is not under.family:
        raise ValueError(f"model_base {base!r} is a {under.config.model_type}; give a language model or a LLaVA.")
    if checkpoint.family is not None and under.family is not checkpoint.family:
        raise ValueError(
            f"{str(checkpoint.folder)!r} was trained on a {checkpoint.config.model_type}, but model_base {base!r} is "
            f"{under.kind} ({under.config.model_type}); give the model it was trained on."
        )
    return checkpoint, under


def never_quantised(checkpoint: Checkpoint) -> list[str]:
    """Modules of a whole model that stay in 16 bits: towers, projectors and the head. A warning says so of experts.

    Their whole paths from the model's root: transformers does not look for a name in the middle of a path.
    """
    model: Any = on_meta(checkpoint.family or LlavaLlamaForCausalLM, checkpoint.config)
    if experts_of(model.decoder):
        logger.warning(
            "The experts of %s stay in 16 bits, as does the router: all experts of a layer are one tensor, and "
            "bitsandbytes quantises linear maps, which are those of attention here.",
            checkpoint.folder,
        )
    return [*paths_of(model, (*model.vision_towers(), *model.projectors())), "lm_head"]


def _loading_options(device_map: Any, device: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained`; LLaVA's default of float16 holds on a GPU, float32 on a CPU.

    Raises:
        ValueError: if torch knows no such device.
    """
    try:
        torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {device!r}, which torch does not know; give cuda, cuda:1, cpu or such.") from None
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if not on_gpu:
        if device != "cpu":
            logger.warning("There is no GPU; the model is loaded on the CPU.")
        device_map = device_map if isinstance(device_map, dict) else "cpu"
    elif device != "cuda":
        device_map = {"": device}
    default = torch.float16 if on_gpu else torch.float32
    options = {"dtype": default, "device_map": device_map, **given}
    if "torch_dtype" in options:
        options["dtype"] = options.pop("torch_dtype")
    options["dtype"] = _as_dtype(options["dtype"], default)
    return options


def _as_dtype(dtype: torch.dtype | str | None, default: torch.dtype) -> torch.dtype | str:
    """A data type given as such or as text; "auto" stays, and stands for the checkpoint's own."""
    if dtype is None:
        return default
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    known = _DTYPES.get(str(dtype).removeprefix("torch."))
    if known is None:
        raise ValueError(f"dtype is {dtype!r}; accepted are auto, {', '.join(_DTYPES)}, and torch's data types.")
    return known


def bitsandbytes_config(
    bits: int, compute_dtype: torch.dtype, double_quant: bool = True, quant_type: str = "nf4", kept: Sequence[str] = ()
) -> Any | None:
    """What `from_pretrained` takes as `quantization_config`; None for 16 bits.

    Args:
        bits: 16, 8 or 4.
        compute_dtype: data type of matrix products, for 4 bits.
        double_quant: quantise the quantisation constants too, for 4 bits.
        quant_type: `nf4` or `fp4`, for 4 bits.
        kept: modules that are not quantised, see `never_quantised`.

    Raises:
        ValueError: for another number of bits.
    """
    if bits == 16:
        return None
    if bits not in (8, 4):
        raise ValueError(f"bits is {bits!r}; accepted are 16, 8 and 4.")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_skip_modules=list(kept),
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
    )
