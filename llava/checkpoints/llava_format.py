"""Loads checkpoints in LLaVA's format: a whole model, or a projector or LoRA adapters over their base model.

No weight is ever made up: one that is missing, unknown or of another shape is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava.checkpoints.contents import Checkpoint, Kind
from llava.checkpoints.fit import (
    DESCRIBED,
    on_meta,
    require_complete,
    require_complete_state,
    require_padding_row,
    require_same_language_model,
    require_tower,
    without_reports,
)
from llava.checkpoints.lora import NON_LORA_FILE, merge_lora
from llava.checkpoints.tokenizer import TOKENIZER_FILES, has_tokenizer, read_tokenizer
from llava.checkpoints.transformers_format import PROJECTOR, TOWERS, projector_name, read_image_processor
from llava.checkpoints.video_llava_format import with_merged_towers
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_VID_END_TOKEN,
    DEFAULT_VID_START_TOKEN,
)
from llava.conversation import recorded_template
from llava.data.video_paths import VideoFileProcessor
from llava.model.families.llava import LlavaLlamaForCausalLM
from llava.model.llava_config import LlavaConfig
from llava.model.parts import NEWLINE
from llava.model.weights import grow_vocabulary, read_header, read_state_dict, write_weights


def load_whole(
    checkpoint: Checkpoint,
    config: LlavaConfig,
    options: Mapping[str, Any],
    projector: Path | None = None,
    described: str = DESCRIBED,
) -> LlavaLlamaForCausalLM:
    """Load a whole model, every weight of it; with `projector`, all but that file's.

    Args:
        checkpoint: checkpoint of a whole model.
        config: describes it, or it and the tower that goes with `projector`.
        options: options of transformers' `from_pretrained`.
        projector: file that the projector is going to be read from.
        described: what the model is called in messages.

    Raises:
        ValueError: if a weight is missing, unknown or of another shape; names it, the shapes and the file. Or if the
            padding token has no row among the embeddings.
    """
    require_padding_row(config, checkpoint.folder)
    state = None
    if getattr(config, "quantization_config", None) is None:  # else its names and shapes are bitsandbytes'
        outline = on_meta(LlavaLlamaForCausalLM, config)
        state = with_merged_towers(checkpoint.files, config)
        if state is not None:
            require_complete_state(outline, state, checkpoint.folder)
        else:
            held = require_complete(outline, checkpoint.files, checkpoint.key_mapping, TOWERS, projector, described)
            _require_towers(outline, held)
    source: dict[str, Any] = {"pretrained_model_name_or_path": checkpoint.folder}
    if state is not None:
        source = {"pretrained_model_name_or_path": None, "state_dict": state}
    with without_reports():
        model, info = LlavaLlamaForCausalLM.from_pretrained(
            **source, config=config, key_mapping=checkpoint.key_mapping, output_loading_info=True, **options
        )
    elsewhere = TOWERS if projector is None else (*TOWERS, PROJECTOR, f"model.{NEWLINE}")
    lost = sorted(name for name in info["missing_keys"] if not name.startswith(elsewhere))
    if lost or info["unexpected_keys"] or info["mismatched_keys"]:
        raise ValueError(f"{str(checkpoint.folder)!r} does not fit its config.json: {lost or info}; fetch it anew.")
    model._weight_conversions = []  # the names it was read under: it is saved under LLaVA's
    return model


def _require_towers(outline: Any, held: frozenset[str]) -> None:
    """Check the folders of those towers of a model of `on_meta` that its own files do not hold."""
    for name, tower in outline.named_towers():
        if f"model.{name}." not in held and Path(tower.vision_tower_name).is_dir():
            require_tower(Path(tower.vision_tower_name), None if name == "vision_tower" else tower.model)


def load_over(base: Checkpoint, checkpoint: Checkpoint, options: dict[str, Any]) -> LlavaLlamaForCausalLM:
    """A projector or adapters over the model they were trained with."""
    assert base.config is not None
    config = _config_over(base, checkpoint)
    own = checkpoint.files[0] if checkpoint.files else checkpoint.folder / NON_LORA_FILE
    replaces = own.is_file() and any(map(projector_name, read_header(own)))
    if not config.sees and (replaces or checkpoint.config is None):
        raise ValueError(
            f"Neither {str(checkpoint.folder)!r} nor its base {str(base.folder)!r} names a vision tower "
            "(mm_vision_tower in config.json); give the folder of the finished training, or a LLaVA as model_base."
        )
    require_same_language_model(config, base.config, base.folder)
    rows, config.vocab_size = config.vocab_size, base.config.vocab_size
    model = load_whole(base, config, options, own if replaces else None, "the base model")
    if rows > base.config.vocab_size:
        grow_vocabulary(model, rows)
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


def tokenizer_of(
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
        added += [DEFAULT_VID_START_TOKEN, DEFAULT_VID_END_TOKEN] if config.mm_video_tower else []
    tokenizer.add_tokens(added, special_tokens=True)
    beyond = [token for token in added if tokenizer.convert_tokens_to_ids(token) >= config.vocab_size]
    if beyond:
        raise ValueError(
            f"config.json asks for the token {beyond[0]!r}, but the embeddings have {config.vocab_size} rows and "
            "the tokenizer uses all of them; the tokenizer or config.json is another model's."
        )


def image_processor_of(
    checkpoint: Checkpoint, base: Checkpoint | None, model: LlavaLlamaForCausalLM
) -> CLIPImageProcessorPil | dict[str, Any] | None:
    """Of the checkpoint, its base or its tower, or as the tower's size and CLIP have it; None without a tower.

    Of a Video-LLaVA `image` and `video`, as its towers were trained; None for a tower that is not there.
    """
    if model.config.sees_videos:
        processors = model.processors()
        video = processors["video"]
        return processors | {"video": None if video is None else VideoFileProcessor.of(video)}
    tower = model.get_vision_tower()
    if tower is None:
        return None
    folders: list[str | Path] = [checkpoint.folder, *([] if base is None else [base.folder]), tower.vision_tower_name]
    found = next((found for found in map(read_image_processor, folders) if found is not None), None)
    if found is not None:
        tower.image_processor = found
    tower.image_processor.do_pad = False  # where the base was in transformers' format; process_images pads
    return tower.image_processor
