"""Builds the tokenizer, the model and the data sets of a training run from its arguments."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available

from llava.checkpoints.contents import Checkpoint, Kind
from llava.checkpoints.llava_format import add_image_tokens, load_whole
from llava.checkpoints.opening import bitsandbytes_config, never_quantised
from llava.checkpoints.tokenizer import read_tokenizer
from llava.compression.config import CompressionConfig
from llava.conversation import get_template
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.families import family_of
from llava.data.families.base import Collator
from llava.data.frames import FrameSampling
from llava.data.salient import salient_words
from llava.model import LlavaLlamaForCausalLM
from llava.model.liger import use_liger
from llava.model.llava_config import LlavaConfig
from llava.model.packing import packing_of_call
from llava.model.parts import projector_weights
from llava.model.staged_model import StagedModel
from llava.train.adapters import compute_dtype
from llava.train.arguments import TOWER_KINDS, DataArguments, ModelArguments, TrainingArguments, resolve_compression
from llava.train.family_start import load_from_family
from llava.train.media_flags import refuse_limits
from llava.train.non_finite import require_finite_start
from llava.train.start import OF_THE_PROJECTOR, find_start, image_opening, require_rows, settle_flags, settle_pinpoints
from llava.train.template import record_template, settle_template
from llava.train.validation import require_measurable

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What a run starts from.

    Attributes:
        model: model with the compression of the flags.
        tokenizer: tokenizer of the language model.
        processor: that of a model of transformers, saved with what is trained; None where a LLaVA's tower has one.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    processor: Any


def load(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> Loaded:
    """The model of `--model_name_or_path`, whatever its family; errors as in `load_model` and `load_from_family`."""
    start = find_start(model_args, training_args)
    if start.kind is Kind.FAMILY:
        options = _options(start, model_args, training_args)
        loaded = Loaded(*load_from_family(start, model_args, data_args, training_args, options))
        _repair_generation_config(loaded.model)
    else:
        refuse_limits(data_args, model_args.model_name_or_path, start.config.model_type)
        tokenizer = load_tokenizer(model_args, training_args)
        loaded = Loaded(load_model(model_args, data_args, training_args, tokenizer), tokenizer, None)
    if training_args.use_liger_kernel:  # before adapters are added
        use_liger(loaded.model)
    return loaded


def load_tokenizer(model_args: ModelArguments, training_args: TrainingArguments) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, padding on the right with a token that needs no new embedding."""
    get_template(model_args.version)
    tokenizer = read_tokenizer(
        find_start(model_args, training_args).folder,
        model_max_length=training_args.model_max_length,
        padding_side="right",
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_model(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> LlavaLlamaForCausalLM:
    """Language model, tower and projector, with the compression of the flags.

    Raises:
        ValueError: if the checkpoint cannot be trained, is not whole or holds a weight that is not finite, a flag
            contradicts what it records, or the compression does not fit the model.
    """
    start = find_start(model_args, training_args)
    config = settle_flags(start, model_args, data_args, training_args)
    settle_template(config, model_args, training_args)
    require_rows(tokenizer, config.vocab_size, model_args.model_name_or_path)
    layers = config.get_text_config().num_hidden_layers
    compression = resolve_compression(model_args, CompressionConfig.resolve(config.compression), layers)
    compression.check_made_for(_trained_as(config, model_args, data_args), layers)  # before minutes of reading weights
    if config.sees:
        add_image_tokens(tokenizer, config)
    model = _open(start, model_args, training_args)
    config = model.config
    config.image_aspect_ratio = data_args.image_aspect_ratio
    config.image_opening = image_opening(config, data_args)
    tokenizer.model_max_length = data_args.tokenizer_model_max_length or training_args.model_max_length
    config.tokenizer_padding_side = tokenizer.padding_side
    config.tokenizer_model_max_length = tokenizer.model_max_length
    if model_args.towers:
        model.get_model().initialize_vision_modules(model_args=model_args, fsdp=training_args.fsdp)
        settle_pinpoints(config, data_args)
        config.mm_projector_lr = training_args.mm_projector_lr
        config.mm_use_im_start_end = model_args.mm_use_im_start_end
        config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
        model.initialize_vision_tokenizer(model_args, tokenizer=tokenizer)
    require_finite_start(model, model_args.model_name_or_path)
    model.set_compression(compression)
    _repair_generation_config(model)
    record_template(model, tokenizer, model_args.version, training_args.lora_weight_path)
    return model


def _trained_as(config: Any, model_args: ModelArguments, data_args: DataArguments) -> dict[str, Any]:
    """What tells the family of the model that training makes, for `llava.common.presets.family_of`."""
    return {
        "model_type": config.model_type,
        "image_aspect_ratio": data_args.image_aspect_ratio,
        "mm_video_tower": model_args.video_tower or config.mm_video_tower,
    }


def _open(start: Checkpoint, model_args: ModelArguments, training_args: TrainingArguments) -> LlavaLlamaForCausalLM:
    """Read the whole checkpoint; every weight must be in it. A plain language model gets tower and projector later.

    Raises:
        ValueError: if a weight is missing, unknown or of another shape; names it.
    """
    config = start.config
    assert config is not None
    options = _options(start, model_args, training_args)
    adapter = None
    if config.sees:
        if model_args.pretrain_mm_mlp_adapter:
            adapter = Path(model_args.pretrain_mm_mlp_adapter)
        for kind in TOWER_KINDS:
            setattr(config, f"mm_{kind}_tower", model_args.towers.get(kind))
        for field in OF_THE_PROJECTOR:
            setattr(config, field, getattr(model_args, field))
    model = load_whole(start, config, options, adapter)
    # The name rather than the folder that it was fetched to: adapters record it as their base.
    model.name_or_path = model.config._name_or_path = model_args.model_name_or_path
    return model


def _options(start: Checkpoint, model_args: ModelArguments, training_args: TrainingArguments) -> dict[str, Any]:
    """Arguments of transformers' `from_pretrained`."""
    quantisation = bitsandbytes_config(
        training_args.bits,
        compute_dtype(training_args),
        training_args.double_quant,
        training_args.quant_type,
        never_quantised(start) if training_args.bits != 16 else (),
    )
    options = {"attn_implementation": _attention(model_args, training_args), "dtype": _stored_dtype(training_args)}
    return options if quantisation is None else options | {"quantization_config": quantisation}


def choose_trained(model: Any, model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Freeze what is not trained. With `--lora_enable` the language model is frozen; `add_lora` comes afterwards.

    Raises:
        ValueError: if nothing is left to train.
    """
    alone = model_args.tune_mm_mlp_adapter
    if isinstance(model.config, LlavaConfig):  # LLaVA's programs read these
        model.config.tune_mm_mlp_adapter = alone
        model.config.freeze_mm_mlp_adapter = training_args.freeze_mm_mlp_adapter
    model.requires_grad_(not (alone or model_args.freeze_backbone or training_args.lora_enable))
    for tower in model.vision_towers():
        tower.requires_grad_(model_args.unfreeze_mm_vision_tower and not alone)
    for projector in model.projectors():  # behind the towers: it may lie inside one
        projector.requires_grad_(not training_args.freeze_mm_mlp_adapter)
    if not training_args.freeze_mm_mlp_adapter:
        for weight in projector_weights(model).values():
            weight.requires_grad_(True)
    for unused in model.unused_modules():
        unused.requires_grad_(False)
    if not training_args.lora_enable and not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "Everything is frozen; leave out --freeze_backbone or --freeze_mm_mlp_adapter, or give images."
        )
    if not training_args.deepspeed:
        _store_frozen_weights_in(compute_dtype(training_args), model)
    if training_args.activation_checkpointing and not model.get_input_embeddings().weight.requires_grad:
        model.enable_input_require_grads()


def make_data(
    model: StagedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_args: ModelArguments,
    data_args: DataArguments,
    processor: Any = None,
    encoded_length: int | None = None,
    packing: str = "auto",
) -> tuple[LazySupervisedDataset, Collator]:
    """Training data and the collator that belongs to it; a LLaVA's tower has its processor itself.

    Args:
        model, tokenizer: as they are trained.
        model_args, data_args: flags.
        processor: transformers' processor of another family.
        encoded_length: as in `DataConfig`.
        packing: form of the rows in training, see `llava.model.packing`.

    Raises:
        ValueError: if rows are to be packed and the model cannot.
    """
    towers = model.vision_towers()
    settings, packing = model.plan_settings(), packing_of_call(packing, model.decoder.config, True, False)
    if settings is not None:
        settings = replace(settings, packing=packing)
    config = DataConfig(
        max_length=tokenizer.model_max_length,
        visual_tokens=None if settings is None else settings.fixed,
        image_folder=data_args.image_folder,
        video_folder=data_args.video_folder,
        find_salient=salient_words(data_args.salient_words),
        salient_name=data_args.salient_words,
        on_bad_sample=data_args.on_bad_sample,
        cache_dir=data_args.data_cache_dir,
        settings=settings,
        encoded_length=encoded_length,
    )
    assert data_args.data_path is not None
    if processor is None and towers:
        processor = _processors(model, data_args)
    sampling = FrameSampling(fps=data_args.video_fps, most=data_args.frames_upbound or None)
    inputs = family_of(model.config)(model.config, tokenizer, processor, model_args.version, sampling=sampling)
    dataset = LazySupervisedDataset(data_args.data_path, inputs, config)
    if towers and not dataset.has_image.any():
        logger.warning(
            "The model has a vision tower, but no record of %s names an image under 'image' or a video under 'video': "
            "it will learn from text alone.",
            " ".join(map(str, data_args.data_path)),
        )
    size = getattr(towers[0].config, "image_size", 0) if towers else None
    return dataset, inputs.collator(size, settings)


def _processors(model: Any, data_args: DataArguments) -> Any:
    """The image processor of a LLaVA; those of a Video-LLaVA, of which that of videos mirrors what the flag says."""
    if not model.config.sees_videos:
        return model.vision_towers()[0].image_processor
    found: dict[str, Any] = model.processors()
    if found["video"] is not None:
        found["video"] = found["video"].flipping(data_args.video_flip)
    return found


def make_held_out(dataset: LazySupervisedDataset, data_args: DataArguments) -> LazySupervisedDataset | None:
    """Held-out data, read as the training data is; None without any. Errors as in `require_measurable`."""
    if data_args.eval_data_path is None:
        return None
    held_out = LazySupervisedDataset(data_args.eval_data_path, dataset.inputs.for_evaluation(), dataset.config)
    require_measurable(held_out)
    return held_out


def _attention(model_args: ModelArguments, training_args: TrainingArguments) -> str:
    if model_args.attn_implementation is not None:
        return model_args.attn_implementation
    half = training_args.bf16 or training_args.fp16
    usable = half and training_args.device.type == "cuda" and is_flash_attn_2_available()
    return "flash_attention_2" if usable else "sdpa"


def _stored_dtype(args: TrainingArguments) -> torch.dtype:
    """What weights are read in: DeepSpeed keeps float32 copies of the trained ones, autocast does not."""
    return compute_dtype(args) if args.deepspeed or args.bits != 16 else torch.float32


def _store_frozen_weights_in(dtype: torch.dtype, model: nn.Module) -> None:
    """Halve the memory of frozen weights.

    Trained ones stay float32 where no engine keeps a float32 copy of them: a step of 2e-5 is lost in bfloat16.
    """
    for weight in model.parameters():
        if not weight.requires_grad and weight.is_floating_point():
            weight.data = weight.data.to(dtype)


def _repair_generation_config(model: Any) -> None:
    """Set `do_sample` where a model's generation settings have sampling options without it; saving refuses those."""
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError as error:
        logger.warning("The model's generation_config is inconsistent; do_sample is set to True. %s", error)
        config.do_sample = True
