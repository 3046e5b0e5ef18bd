"""Command line of training: LLaVA's flags, the compression's, and transformers' own in old and new spelling."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import transformers
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llava.common.path_flags import read_paths
from llava.compression.config import CompressionConfig
from llava.model.budget_flags import BudgetFlags
from llava.model.crop_merging import MERGE_TYPES
from llava.train.deepspeed_file import check_deepspeed_file
from llava.train.foreign_flags import FOREIGN, is_switched_off
from llava.train.part_flags import settle_parts
from llava.train.ranges import PATHS, require_in_range
from llava.train.supported import is_left_out, require_supported
from llava.train.together import LAYERS_AGAIN, check_together
from llava.train.warmup import one_warmup
from llava.train.workers import AS_MANY_AS_FIT, fitting_workers

logger = logging.getLogger(__name__)


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


_ELSE = "What a checkpoint records takes the default's place."
_QWEN = "Of models that keep the size of an image, as Qwen's; by default the processor's."


TOWER_KINDS = ("vision", "image", "video")
"""The tower of a LLaVA, and the two of a Video-LLaVA; flags are `--KIND_tower`, fields `mm_KIND_tower`."""


@dataclass
class ModelArguments:
    """Flags about the model: checkpoint, tower, projector and compression."""

    # Names of the flags that the command line held; no flag itself.
    given = frozenset[str]()

    model_name_or_path: str = _flag("lmsys/vicuna-7b-v1.5", "Language model or LLaVA checkpoint: a folder or hub name.")
    version: str = _flag("v1", f"Conversation template: `plain` for pre-training, `v1` for fine-tuning. {_ELSE}")
    freeze_backbone: bool = _flag(False, "Leave the language model as it is.")
    tune_mm_mlp_adapter: bool = _flag(False, "Train the projector alone (pre-training).")
    vision_tower: str | None = _flag(None, "CLIP vision model: a folder or hub name. By default the checkpoint's.")
    image_tower: str | None = _flag(
        None, "LanguageBind model for images, in a Video-LLaVA: a folder or hub name. By default the checkpoint's."
    )
    video_tower: str | None = _flag(
        None, "LanguageBind model for videos, which makes a Video-LLaVA: a folder or hub name. By default likewise."
    )
    unfreeze_mm_vision_tower: bool = _flag(False, "Train the vision tower (or both towers) as well.")
    mm_vision_select_layer: int = _flag(-2, f"Hidden state of the tower that is used. {_ELSE}")
    mm_vision_select_feature: str = _flag("patch", f"`patch`, or `cls_patch` to keep the CLS token. {_ELSE}")
    pretrain_mm_mlp_adapter: str | None = _flag(None, "`mm_projector.bin` of the pre-training.")
    mm_projector_type: str = _flag("linear", f"`linear`, `mlpNx_gelu` or `identity`. {_ELSE}")
    mm_use_im_start_end: bool = _flag(False, f"Surround images with <im_start> and <im_end>. {_ELSE}")
    mm_use_im_patch_token: bool = _flag(False, f"Add the token <im_patch> to the vocabulary. {_ELSE}")
    mm_patch_merge_type: str = _flag("flat", f"How crops of an image are joined: {', '.join(MERGE_TYPES)}. {_ELSE}")
    mm_tunable_parts: str | None = _flag(
        None,
        "As in LLaVA-NeXT: what is trained, of `mm_vision_tower,mm_mlp_adapter,mm_language_model`; takes the place of "
        "the flags that freeze and tune.",
    )
    tune_mm_llm: bool | None = _flag(None, "As in Qwen's training: train the language model. The three go together.")
    tune_mm_mlp: bool | None = _flag(None, "As in Qwen's training: train the projector (Qwen's merger).")
    tune_mm_vision: bool | None = _flag(None, "As in Qwen's training: train the vision tower.")
    attn_implementation: str | None = _flag(
        None, "`sdpa`, `eager` or `flash_attention_2`; by default FlashAttention where it is installed, else SDPA."
    )
    compression: str | None = _flag(None, "Preset (`duet-192`, ...) or YAML file; by default what the model has.")
    scale_to_depth: bool = _flag(False, "Scale the layers of --compression from the depth that it is made for.")
    dominant_num: float | None = _flag(
        None, "V2V: tokens kept as they are, CLS included, or below 1 a share of all; overrides --compression."
    )
    context_num: float | None = _flag(
        None, "V2V: tokens merged from the rest, or below 1 a share of all; overrides --compression."
    )
    cluster_width: int | None = _flag(None, "V2V: patches pooled for each merged token; overrides --compression.")
    layer_list: str | None = _flag(None, "T2V: '[16,24]', drops after so many layers; overrides --compression.")
    image_token_ratio_list: str | None = _flag(None, "T2V: '[0.5,0.0]', kept shares; overrides --compression.")
    use_salient_tokens: bool | None = _flag(None, "T2V: salient words vote too; overrides --compression.")

    @property
    def towers(self) -> dict[str, str]:
        """Names of the towers that are to be, by `vision`, or `image` and `video`."""
        named = {kind: getattr(self, f"{kind}_tower") for kind in TOWER_KINDS}
        return {kind: name for kind, name in named.items() if name}


@dataclass
class DataArguments:
    """Flags about the training data: files, image folder and how samples are made of them."""

    given = frozenset[str]()

    data_path: list[str] | None = field(
        default=None,
        metadata={"help": "LLaVA conversations: JSON, JSON lines, Parquet, or YAML mixtures of them; one or several."},
    )
    eval_data_path: list[str] | None = field(
        default=None, metadata={"help": "Held-out conversations; their loss is logged as eval_loss."}
    )
    image_folder: str = _flag(".", "Where the image names of the data start.")
    video_folder: str | None = _flag(None, "Where names of videos start; by default the image folder.")
    video_fps: float | None = _flag(
        None, "Frames taken of every second of a video; by default as many as the model is made for."
    )
    frames_upbound: int | None = _flag(
        None, "Most frames of a video; of one with more, so many at equal distances. 0 is no bound."
    )
    min_pixels: int | None = _flag(None, f"Smaller images are enlarged to so many pixels. {_QWEN}")
    max_pixels: int | None = _flag(None, f"Larger images are shrunk to so many pixels. {_QWEN}")
    video_min_pixels: int | None = _flag(None, f"Smaller frames are enlarged to so many pixels. {_QWEN}")
    video_max_pixels: int | None = _flag(None, f"Larger frames are shrunk to so many pixels. {_QWEN}")
    video_min_frames: int | None = _flag(None, f"Fewest frames of a video. {_QWEN}")
    video_max_frames: int | None = _flag(None, f"Most frames of a video. {_QWEN}")
    video_flip: float = _flag(
        0.0, "Share of the videos of a Video-LLaVA that are mirrored left to right, by their names; published: 0.5."
    )
    tokenizer_model_max_length: int | None = _flag(
        None,
        "Longest sequence of a Video-LLaVA, images and frames expanded; --model_max_length then limits the ids before, "
        "in which each image and each frame is one. By default --model_max_length is the limit of both.",
    )
    image_opening: str | None = _flag(
        None, "`upright` applies a photo's rotation mark, `llava` does not; by default the checkpoint's, or upright."
    )
    image_aspect_ratio: str = _flag(
        "square",
        "`pad` to a square in the mean colour; `square`: resize and crop; `anyres` and `anyres_max_N`: cut into crops, "
        f"as in LLaVA-NeXT. {_ELSE}",
    )
    image_grid_pinpoints: str | None = _flag(
        None,
        "With anyres: canvases [[width, height], ...] or `(1x1),...,(6x6)`; by default LLaVA-1.6's for the tower. "
        f"{_ELSE}",
    )
    salient_words: str = _flag("rules", "Who finds salient words: `rules`, `spacy` or `spacy:PIPELINE`.")
    on_bad_sample: str = _flag("fail", "An image or video that cannot be read: `fail` stops the run, `skip` counts it.")
    max_bad_share: float = _flag(0.01, "With --on_bad_sample skip: share of skipped samples at which a run stops.")
    data_cache_dir: str | None = _flag(None, "Where tokenised data is kept; by default in the cache of datasets.")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Flags about the training loop: those of transformers' `TrainingArguments` and LLaVA's additions."""

    given = frozenset[str]()

    cache_dir: str | None = _flag(None, "Where downloads are kept.")
    remove_unused_columns: bool = _flag(False, "Must stay False: the collator makes the model's inputs.")
    logging_nan_inf_filter: bool = _flag(False, "Useless here: a loss that is not finite stops the run.")
    ddp_find_unused_parameters: bool | None = _flag(False, "Not needed: every rank uses every trained weight.")
    overwrite_output_dir: bool = _flag(False, "Train into a folder that already holds a finished model.")
    verify_checkpoint: str = _flag(
        "full", "How closely a checkpoint is looked at before a run goes on from it: `full` or `quick`."
    )
    freeze_mm_mlp_adapter: bool = _flag(False, "Leave the projector as it is.")
    model_max_length: int = _flag(512, f"Longest sequence, expanded images included; longer ones are cut. {_ELSE}")
    mm_projector_lr: float | None = _flag(None, "Learning rate of the projector, if it differs.")
    mm_vision_tower_lr: float | None = _flag(None, "Learning rate of the vision tower, if it differs; trains it.")
    lora_enable: bool = _flag(False, "Train low-rank adapters of the language model's layers instead of its weights.")
    lora_r: int = _flag(64, "Rank of the adapters.")
    lora_alpha: int = _flag(16, "The adapters' output is scaled by lora_alpha / lora_r.")
    lora_dropout: float = _flag(0.05, "Dropout in front of the adapters.")
    lora_bias: str = _flag("none", "Biases trained with the adapters: `none`, `lora_only` or `all`.")
    lora_target_modules: str = _flag(
        "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        "Linear maps of the language model's layers that get adapters, by name; `q,k,v,o` for those of attention.",
    )
    lora_weight_path: str = _flag("", "Folder of adapters to go on from: their weights, not their optimizer.")
    bits: int = _flag(16, "Bits of the frozen language model: 16, 8 or 4 (bitsandbytes; needs --lora_enable).")
    double_quant: bool = _flag(True, "With 4 bits: quantise the quantisation constants too.")
    quant_type: str = _flag("nf4", "With 4 bits: `nf4` or `fp4`.")
    early_save_check: bool = _flag(True, "Before the first step save everything once, read it back and remove it.")
    peak_tflops: float | None = _flag(None, "Peak of one device, for MFU, where the device is not known by name.")
    group_by_modality_length: bool = _flag(False, "Batches of one kind (with or without images) and like length.")
    packing: str = _flag(
        "auto",
        "Rows of a batch end to end in the decoder, without padding: `auto` where there would be any and the attention "
        "kernel can, `on` always, `off` never.",
    )
    dataloader_num_workers: int = _flag(
        AS_MANY_AS_FIT, "Processes of each device that load data; by default as many as fit the machine, 0 on a CPU."
    )
    checkpointed_layers: str = _flag(
        "all",
        "Layers that compute their activations again where --activation_checkpointing is on: `all`, `before_drop` "
        "(those in front of the first drop), or `auto`: none, those or all, by the memory of the device. "
        "--activation_checkpointing takes these values and `none`, too.",
    )
    max_tokens_per_device: int | None = _flag(
        None,
        "Fill the forward passes of a step by tokens that enter the decoder, at most so many at once, instead of by "
        "rows; the samples of a step stay devices x --per_device_train_batch_size x --gradient_accumulation_steps.",
    )

    def __post_init__(self) -> None:
        """As in transformers; settles how many processes load data."""
        super().__post_init__()
        if self.dataloader_num_workers == AS_MANY_AS_FIT:
            needed = self.dataloader_persistent_workers or self.dataloader_prefetch_factor is not None
            self.dataloader_num_workers = max(int(needed), fitting_workers(self.device))


# Old name of a transformers flag -> its present name. A warm-up below 1 is a share of all steps.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "vision_tower_lr": "mm_vision_tower_lr",
}
# Flags in LLaVA users' scripts that have no effect: data is always read lazily, weights are safetensors.
WITHOUT_EFFECT = frozenset(
    (
        "lazy_preprocess",
        "is_multimodal",
        "mpt_attn_impl",
        "save_safetensors",
        "logging_dir",
        "include_tokens_per_second",
    )
)

# Flags that hold a list in one word, and how it is written.
_LISTS = {
    **dict.fromkeys(("lora_target_modules", "mm_tunable_parts", "optim_args"), "{}"),
    **dict.fromkeys(("layer_list", "image_token_ratio_list"), "[{}]"),
}


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Read the command line.

    Raises:
        ValueError: for unknown flags, values out of range and values that do not go together.
    """
    arguments = modern_spelling(sys.argv[1:] if argv is None else argv)
    check_deepspeed_file(arguments)
    unset_hf_deepspeed_config()  # transformers keeps that of an earlier run of this process, and opens models by it
    model_args, data_args, training_args = _parse(arguments)
    if data_args.data_path is None:
        raise ValueError("--data_path is missing; give a JSON file of LLaVA conversations.")
    settle_parts(model_args, training_args)
    check_together(model_args, data_args, training_args)
    return model_args, data_args, training_args


def _parse(arguments: Sequence[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Read flags in the present spelling; each result also knows which flags were there.

    Raises:
        ValueError: for unknown flags; names them, and one that was perhaps meant.
    """
    kinds = (ModelArguments, DataArguments, TrainingArguments)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    absent = object()
    sparse = HfArgumentParser(kinds)
    sparse.set_defaults(**dict.fromkeys(names, absent))
    read, unknown = sparse.parse_known_args(list(arguments))
    said = {name: value for name, value in vars(read).items() if value is not absent}
    require_supported(said)
    require_in_range(said)
    paths = read_paths(said, PATHS)
    if unknown:
        raise ValueError(_why_unknown(unknown, arguments, names))
    parsed = HfArgumentParser(kinds).parse_args_into_dataclasses(list(arguments), look_for_args_file=False)
    model_args, data_args, training_args = parsed
    for args in parsed:
        args.given = frozenset(said)
        for name in paths.keys() & vars(args).keys():
            setattr(args, name, paths[name])
    return model_args, data_args, training_args


def _why_unknown(unknown: Sequence[str], arguments: Sequence[str], names: Collection[str]) -> str:
    """What to say of words that no flag takes: a flag is unknown, or one that takes a single word got several."""
    for name, values in _flags(arguments):
        if name in names and unknown[0] in values[1:]:
            words = " ".join(values)
            said = f"--{name} takes one word, but {len(values)} stand behind it: {words}."
            if name not in _LISTS:
                quoted = shlex.quote(words)
                return f"{said} Put quotes around them if they are one ({quoted}), or leave out {unknown[0]!r}."
            listed = ",".join(re.findall(r"[^\s,\[\]]+", words))
            return f"{said} Write them as one: --{name} {shlex.quote(_LISTS[name].format(listed))}."
    near = difflib.get_close_matches(unknown[0].lstrip("-").partition("=")[0], names, 1)
    meant = f" Perhaps --{near[0]} is meant." if near else ""
    return f"{' '.join(unknown)!r} on the command line is no flag of this program.{meant}"


def modern_spelling(argv: Sequence[str]) -> list[str]:
    """Translate flags of older transformers releases; say so in the log.

    Raises:
        ValueError: for a flag of another program that asks for something that cannot be had.
    """
    result: list[str] = []
    for name, values in one_warmup(_flags(argv)):
        if name in WITHOUT_EFFECT:
            logger.info("--%s has no effect any more.", name)
        elif name == "group_by_length":
            if _is_yes(name, values):
                result += ["--train_sampling_strategy", "group_by_length"]
        elif is_left_out(name, values) or (name in FOREIGN and is_switched_off(name, values)):
            logger.info("--%s asks for nothing that is done otherwise.", name)
        elif RENAMED.get(name, name) == "activation_checkpointing" and values and values[0].lower() in LAYERS_AGAIN:
            result += ["--activation_checkpointing", "True", "--checkpointed_layers", values[0].lower()]
        elif RENAMED.get(name, name) == "activation_checkpointing" and values and values[0].lower() == "none":
            result += ["--activation_checkpointing", "False"]
        elif name in RENAMED:
            logger.info("--%s is now --%s.", name, RENAMED[name])
            result += [f"--{RENAMED[name]}", *values]
        elif len(values) == 1 and re.match(r"-(?!\d+$|\d*\.\d+$)", values[0]):
            result.append(f"--{name}={values[0]}")  # argparse takes -1e-5 and -inf for names of flags
        else:
            result += [f"--{name}", *values] if name else values
    return result


def _is_yes(name: str, values: Sequence[str]) -> bool:
    """Whether a flag of yes and no says yes, in the words that transformers takes for other ones."""
    try:
        return not values or bool(string_to_bool(values[0]))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--{name}: {error}") from error


def _flags(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Split a command line into flags with their values; a first entry without name holds what precedes them."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.append((name.replace("-", "_"), [value] if equals else []))
        else:
            found[-1][1].append(word)
    return found


def resolve_compression(
    args: ModelArguments, present: CompressionConfig, num_layers: int | None = None
) -> CompressionConfig:
    """The compression that the flags ask for; without any, the one that the model has; see `BudgetFlags`."""
    flags = BudgetFlags(
        compression=args.compression,
        dominant=args.dominant_num,
        contextual=args.context_num,
        cluster_width=args.cluster_width,
        layers=args.layer_list,
        keep=args.image_token_ratio_list,
        salient=args.use_salient_tokens,
        scale_to_depth=args.scale_to_depth,
    )
    return flags.over(present, num_layers)
