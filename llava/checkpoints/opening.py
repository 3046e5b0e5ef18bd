"""Opening any checkpoint: tokenizer, model, image processor and context length, as LLaVA's users call it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava.checkpoints.contents import HUB_OPTIONS, Checkpoint, Kind, examine, fetch
from llava.checkpoints.fit import require_fit, require_padding_row, require_tower
from llava.checkpoints.lora import ADAPTER_FILES, NON_LORA_FILE, base_model_of, merge_lora
from llava.checkpoints.quantization import bitsandbytes_config
from llava.checkpoints.tokenizer import TOKENIZER_FILES, has_tokenizer, read_tokenizer, stop_at_end_mark
from llava.checkpoints.transformers_format import PROJECTOR, TOWER, projector_name, read_image_processor
from llava.compression.config import CompressionConfig
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.conversation import recorded_template
from llava.model.finite import not_finite, require_finite_model
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.llava_config import LlavaConfig
from llava.model.weights import read_header, read_state_dict, write_weights

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
# What a projector or adapters and the language model under them must have in common, or they mean nothing there.
_OF_THE_LANGUAGE_MODEL = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_parameters",
)


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
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM, CLIPImageProcessorPil | None, int]:
    """Open a LLaVA in its own format or in transformers', a projector or LoRA adapters over a base, or a plain Llama.

    What the folder holds decides, not its name. The compression saved in `config.json` is the model's budget. No
    weight is ever made up: one that is missing, unknown, of another shape or not finite is an error.

    Args:
        model_path: folder, or name on the hub, of a whole model, of a projector (`config.json` and
            `mm_projector.bin`), or of LoRA adapters, which are merged.
        model_base: model that a projector or adapters belong to, a language model or a LLaVA; for LoRA, by default
            the one that the adapters recorded.
        model_name: LLaVA's name rules are applied to it where `config.json` says no `model_type`; by default to the
            folder's name.
        load_8bit, load_4bit: quantise the language model with bitsandbytes; tower and projector stay as they are.
        device_map: as in transformers. Without a GPU the model goes to the CPU, unless this is a mapping.
        device: "cuda" (also ROCm) or "cpu".
        use_flash_attn: use FlashAttention-2 instead of PyTorch's SDPA.
        compression: instead of the saved one: an object, preset's name, YAML file or mapping.
        kwargs: to transformers' `from_pretrained`, such as `dtype` (also as `torch_dtype`, or as text) and
            `attn_implementation`, and where to fetch from: `cache_dir`, `revision`, `token`, `local_files_only`.

    Returns:
        tokenizer, model in eval mode, image processor (None without a vision tower), context length in tokens.

    Raises:
        ValueError: if there is nothing to open, a weight does not fit or is NaN or infinite, a base is needed and not
            given or another one, or LoRA adapters are asked for in 4 or 8 bits.
    """
    hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
    options = _loading_options(device_map, device, load_8bit, load_4bit, use_flash_attn, kwargs)
    checkpoint, base = resolve(model_path, model_base, model_name, **hub)
    if base is None:
        assert checkpoint.config is not None
        model = load_whole(checkpoint, checkpoint.config, options)
    else:
        model = _load_over(base, checkpoint, options)
    try:
        require_finite_model(model, model_path)
    except ValueError as error:
        raise ValueError(f"{error}{_faulty_file(checkpoint, base)}") from None
    if compression is not None:
        model.set_compression(CompressionConfig.resolve(compression))
    tokenizer = _load_tokenizer(checkpoint, base, model)
    stop_at_end_mark(model.generation_config, tokenizer, recorded_template(model.config))
    context = model.config.max_sequence_length or model.config.tokenizer_model_max_length or DEFAULT_CONTEXT_LENGTH
    return tokenizer, model.eval(), _image_processor(checkpoint, base, model), context


def _faulty_file(checkpoint: Checkpoint, base: Checkpoint | None) -> str:
    """Which of the files that a model was made of holds NaN or infinity, as a sentence; "" where none does."""
    own = [checkpoint.folder / name for name in (*ADAPTER_FILES, NON_LORA_FILE)] if checkpoint.kind is Kind.LORA else []
    for path in (*checkpoint.files, *filter(Path.is_file, own), *(() if base is None else base.files)):
        names = not_finite(read_state_dict(path).items())
        if names:
            return f" {str(path)!r} holds it as {names[0]}."
    return ""


def resolve(
    model_path: str, model_base: str | None = None, model_name: str | None = None, **hub: Any
) -> tuple[Checkpoint, Checkpoint | None]:
    """The checkpoint at a path or hub name, and the one that it goes on top of, if it is not whole.

    Raises:
        ValueError: if one of them cannot be opened, or a base is needed and not named.
    """
    checkpoint = examine(fetch(model_path, **hub), model_name)
    if not checkpoint.needs_base:
        if model_base is not None:
            logger.warning("%s is %s by itself; model_base is not used.", checkpoint.folder, checkpoint.kind)
        return checkpoint, None
    if model_base is None and checkpoint.kind is Kind.LORA:
        model_base = base_model_of(checkpoint.folder)
    if model_base is None:
        what = f"a projector ({checkpoint.files[0].name})" if checkpoint.files else "LoRA adapters"
        raise ValueError(
            f"{str(checkpoint.folder)!r} holds only {what}; give the language model it was trained with as model_base."
        )
    base = examine(fetch(model_base, **{name: value for name, value in hub.items() if name != "revision"}))
    if base.needs_base:
        raise ValueError(f"model_base {model_base!r} holds only {base.kind}; give a whole model.")
    return checkpoint, base


def _loading_options(
    device_map: Any, device: str, load_8bit: bool, load_4bit: bool, use_flash_attn: bool, given: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of `from_pretrained`; LLaVA's default of float16 holds on a GPU, float32 on a CPU."""
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
    if use_flash_attn:
        options["attn_implementation"] = "flash_attention_2"
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit are both set; choose one.")
    if load_8bit or load_4bit:
        compute = default if options["dtype"] == "auto" else options["dtype"]
        options["quantization_config"] = bitsandbytes_config(4 if load_4bit else 8, compute)
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


def load_whole(
    checkpoint: Checkpoint,
    config: LlavaConfig,
    options: Mapping[str, Any],
    projector: Path | None = None,
    described: str = "the model that config.json describes",
) -> LlavaLlamaForCausalLM:
    """Load a whole model, every weight of it; with `projector`, all but that file's.

    Args:
        checkpoint: of a whole model.
        config: describes it, or it and the tower that goes with `projector`.
        options: of transformers' `from_pretrained`.
        projector: file that the projector is going to be read from.
        described: what the model is called in messages.

    Raises:
        ValueError: if a weight is missing, unknown or of another shape; names it, the shapes and the file. Or if the
            padding token has no row among the embeddings.
    """
    require_padding_row(config, checkpoint.folder)
    if getattr(config, "quantization_config", None) is None:  # else its names and shapes are bitsandbytes'
        has_tower = require_fit(config, checkpoint.files, checkpoint.key_mapping, projector, described)
        tower = config.mm_vision_tower
        if tower and not has_tower and Path(tower).is_dir():
            require_tower(Path(tower))
    with _without_reports():
        model, info = LlavaLlamaForCausalLM.from_pretrained(
            checkpoint.folder, config=config, key_mapping=checkpoint.key_mapping, output_loading_info=True, **options
        )
    elsewhere = (TOWER,) if projector is None else (TOWER, PROJECTOR)
    lost = sorted(name for name in info["missing_keys"] if not name.startswith(elsewhere))
    if lost or info["unexpected_keys"] or info["mismatched_keys"]:
        raise ValueError(f"{str(checkpoint.folder)!r} does not fit its config.json: {lost or info}; fetch it anew.")
    model._weight_conversions = []  # the names it was read under: it is saved under LLaVA's
    return model


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keep transformers from reporting as newly initialised what is read from the tower's or the projector's files."""
    library = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    library.addFilter(is_other)
    try:
        yield
    finally:
        library.removeFilter(is_other)


def _load_over(base: Checkpoint, checkpoint: Checkpoint, options: dict[str, Any]) -> LlavaLlamaForCausalLM:
    """A projector or adapters over the model they were trained with."""
    if checkpoint.kind is Kind.LORA and "quantization_config" in options:
        raise ValueError(
            f"{str(checkpoint.folder)!r} holds LoRA adapters, and merging them into 4 or 8 bits would round the "
            "result; merge them with scripts/merge_lora_weights.py and open the merged model in 4 or 8 bits."
        )
    assert base.config is not None
    config = _config_over(base, checkpoint)
    own = checkpoint.files[0] if checkpoint.files else checkpoint.folder / NON_LORA_FILE
    replaces = own.is_file() and any(map(projector_name, read_header(own)))
    if not config.mm_vision_tower and (replaces or checkpoint.config is None):
        raise ValueError(
            f"Neither {str(checkpoint.folder)!r} nor its base {str(base.folder)!r} names a vision tower "
            "(mm_vision_tower in config.json); give the folder of the finished training, or a LLaVA as model_base."
        )
    _require_same_language_model(config, base.config, base.folder)
    rows, config.vocab_size = config.vocab_size, base.config.vocab_size
    model = load_whole(base, config, options, own if replaces else None, "the base model")
    if rows > base.config.vocab_size:
        _grow_vocabulary(model, rows)
    if checkpoint.kind is Kind.LORA:
        return merge_lora(model, checkpoint.folder)
    weights = {projector_name(name) or name: tensor for name, tensor in read_state_dict(own).items()}
    write_weights(model, weights, own)
    return model


def _config_over(base: Checkpoint, checkpoint: Checkpoint) -> LlavaConfig:
    """Configuration of the projector or the adapters, else of the base.

    A projector, and whatever was trained in `plain`, is asked in the template of the base.
    """
    assert base.config is not None
    config = copy.deepcopy(checkpoint.config if checkpoint.config is not None else base.config)
    says = config.conversation_template is not None
    former = recorded_template(base.config)
    if former is not None and recorded_template(config) is None and (says or checkpoint.kind is Kind.PROJECTOR):
        config.conversation_template = former
    return config


def _require_same_language_model(config: LlavaConfig, base: LlavaConfig, folder: Path) -> None:
    for field in _OF_THE_LANGUAGE_MODEL:
        here, there = getattr(config, field, None), getattr(base, field, None)
        if here != there:
            raise ValueError(
                f"model_base {str(folder)!r} has {field} {there!r}, but the projector or adapters were trained on a "
                f"model with {here!r}; give that model."
            )


def _grow_vocabulary(model: LlavaLlamaForCausalLM, rows: int) -> None:
    """Rows for the image tokens that training added; as there, they start as the mean of the others."""
    old = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows, mean_resizing=False)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        with torch.no_grad():
            embedding.weight[old:] = embedding.weight[:old].mean(dim=0)


def _load_tokenizer(
    checkpoint: Checkpoint, base: Checkpoint | None, model: LlavaLlamaForCausalLM
) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer or its base's, with the image tokens that the configuration asks for."""
    folders = [checkpoint.folder] + ([] if base is None else [base.folder])
    own = [folder for folder in folders if has_tokenizer(folder)]
    if not own:
        raise ValueError(
            f"There is no tokenizer ({', '.join(TOKENIZER_FILES)}) in {' or '.join(map(str, folders))}; copy that of "
            "the language model there."
        )
    tokenizer = read_tokenizer(own[0])
    add_image_tokens(tokenizer, model.config)
    return tokenizer


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, config: LlavaConfig) -> None:
    """Give a tokenizer the image tokens that a checkpoint was trained with, where it was saved without them.

    Raises:
        ValueError: if the embeddings have no row for one.
    """
    added = [DEFAULT_IMAGE_PATCH_TOKEN] if config.mm_use_im_patch_token else []
    if config.mm_use_im_start_end:
        added += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    tokenizer.add_tokens(added, special_tokens=True)
    beyond = [token for token in added if tokenizer.convert_tokens_to_ids(token) >= config.vocab_size]
    if beyond:
        raise ValueError(
            f"config.json asks for the token {beyond[0]!r}, but the embeddings have {config.vocab_size} rows and "
            "the tokenizer uses all of them; the tokenizer or config.json is another model's."
        )


def _image_processor(
    checkpoint: Checkpoint, base: Checkpoint | None, model: LlavaLlamaForCausalLM
) -> CLIPImageProcessorPil | None:
    """Of the checkpoint, its base or its tower, or as the tower's size and CLIP have it; None without a tower."""
    tower = model.get_vision_tower()
    if tower is None:
        return None
    folders: list[str | Path] = [checkpoint.folder, *([] if base is None else [base.folder]), tower.vision_tower_name]
    found = next((found for found in map(read_image_processor, folders) if found is not None), None)
    if found is not None:
        tower.image_processor = found
    tower.image_processor.do_pad = False  # where the base was in transformers' format; process_images pads
    return tower.image_processor
