"""Starts training from a model of transformers: its own class and processor, with both stages inside."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.checkpoints.contents import Checkpoint
from llava.checkpoints.family_format import load_family
from llava.checkpoints.processors import processor_of
from llava.common.shown import shown
from llava.compression.config import CompressionConfig
from llava.data.families import family_of
from llava.mm_utils import get_model_name_from_path
from llava.model.weights import load_projectors
from llava.train.adapters import settle_adapters
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, resolve_compression
from llava.train.media_flags import warn_of_idle_budget, with_limits
from llava.train.non_finite import require_finite_start
from llava.train.start import image_opening

logger = logging.getLogger(__name__)

OF_LLAVA = (
    "version",
    "vision_tower",
    "image_tower",
    "video_tower",
    "video_flip",
    "tokenizer_model_max_length",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "mm_projector_type",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "mm_patch_merge_type",
    "image_aspect_ratio",
    "image_grid_pinpoints",
)
"""Flags of LLaVA's own models, whose towers, crops and templates are chosen when they are made."""


def load_from_family(
    start: Checkpoint,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    options: dict[str, Any],
) -> tuple[Any, PreTrainedTokenizerBase, Any]:
    """A model of another family, its tokenizer and its processor.

    Args:
        start: checkpoint of `Kind.FAMILY`.
        model_args, data_args, training_args: arguments of the run; what adapters record is filled in.
        options: options of transformers' `from_pretrained`.

    Raises:
        ValueError: if no inputs can be made for such a model, a flag of LLaVA's own models is given, the compression
            does not fit, or a weight is missing, of another shape or not finite.
    """
    config, name = start.config, model_args.model_name_or_path
    _refuse_flags_of_llava(config, model_args, data_args)
    model_args.version = family_of(config).template_for(config, get_model_name_from_path(name))
    settle_adapters(training_args, name)
    layers = config.get_text_config().num_hidden_layers
    compression = resolve_compression(
        model_args, CompressionConfig.resolve(getattr(config, "compression", None)), layers
    )
    compression.check_made_for(config.model_type, layers)  # before minutes of reading weights
    processor, tokenizer = processor_of(config, start.folder)
    if processor is None:
        raise ValueError(
            f"The processor of {name!r} cannot be made (see the warning above), so nothing can be shown to the model; "
            "install what it needs."
        )
    processor = with_limits(processor, data_args)
    warn_of_idle_budget(processor, compression)
    tokenizer.model_max_length = training_args.model_max_length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = start.family.of(load_family(start, options), compression)
    # The name rather than the folder that it was fetched to: adapters record it as their base.
    model.name_or_path = model.config._name_or_path = name
    model.config.image_opening = image_opening(model.config, data_args)
    if model_args.pretrain_mm_mlp_adapter:
        load_projectors(model, model_args.pretrain_mm_mlp_adapter)
    require_finite_start(model, name)
    return model, tokenizer, processor


def _refuse_flags_of_llava(config: Any, model_args: ModelArguments, data_args: DataArguments) -> None:
    for holder in (model_args, data_args):
        for flag in OF_LLAVA:
            if hasattr(type(holder), flag) and flag in holder.given:
                why = (
                    "it is trained in the chat template of its own processor"
                    if flag == "version"
                    else "its config.json and its processor say what towers, pictures and projector are"
                )
                raise ValueError(
                    f"--{flag} {shown(getattr(holder, flag))} is a flag of LLaVA's own models, but "
                    f"{model_args.model_name_or_path!r} is a {config.model_type}: {why}. Leave it out."
                )
