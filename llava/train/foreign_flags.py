"""Flags of other programs that train LLaVAs, and of older transformers releases, that this one does not honour.

LLaVA's own flags are in `llava.train.arguments`. One that stands here is an error in words unless it is switched off.
"""

from __future__ import annotations

from collections.abc import Iterable

_PARTS = (
    "choose with --mm_tunable_parts, or with --tune_mm_mlp_adapter, --freeze_backbone, --freeze_mm_mlp_adapter and "
    "--unfreeze_mm_vision_tower"
)
_CROPS = "images are one square each, or cut into crops as --image_aspect_ratio anyres does"
_FRAMES = "--video_fps and --frames_upbound choose the frames of a video, and nothing is said about them in words"
_RESAMPLER = "there is no resampler; --compression says how many visual tokens remain"
_ROPE = "positions are those of the checkpoint; write rope_parameters into its config.json"
_BATCHES = "use --group_by_modality_length"
_PRECISION = "--bf16 and --fp16 use PyTorch's own mixed precision"
_HUB = "nothing is uploaded; use `hf upload`"
_NO_FSDP = "weights are shared out by DeepSpeed's ZeRO; give --deepspeed"
_DEVICE = "the device is found by itself; --use_cpu chooses the CPU"

# Reasons, each with the names of flags; where these come from is said above each group.
_REASONS: tuple[tuple[str, str], ...] = (
    # LLaVA-NeXT, LLaVA-OneVision
    ("config.json says what the model is", "model_class_name"),
    (_PARTS, "unfreeze_language_model"),
    (
        _RESAMPLER,
        "tune_mm_vision_resampler freeze_mm_vision_resampler mm_resampler_type mm_mask_drop_mode "
        "mm_mask_drop_skip_percentage mm_mask_drop_ratio mm_mask_drop_ratio_upper mm_mask_drop_ratio_lower "
        "mm_spatial_pool_stride mm_spatial_pool_mode mm_spatial_pool_out_channels mm_perceiver_depth "
        "mm_perceiver_latents mm_perceiver_ff_mult mm_perceiver_pretrained mm_qformer_depth "
        "mm_qformer_latents mm_qformer_pretrained",
    ),
    ("--vision_tower names the weights as well", "vision_tower_pretrained"),
    (_ROPE, "rope_scaling_factor rope_scaling_type use_pos_skipping pos_skipping_range"),
    (_CROPS, "s2 s2_scales image_crop_resolution image_split_resolution"),
    ("it is of videos, which a LLaVA-NeXT is not shown here; --video_tower makes a Video-LLaVA", "mm_newline_position"),
    (_FRAMES, "add_faster_video faster_token_stride add_time_instruction force_sample"),
    ("text and images share batches as --group_by_modality_length says", "early_mix_text"),
    (_BATCHES, "group_by_varlen group_by_modality_length_auto"),
    # Video-LLaVA
    ("the video tower says how many frames a video has", "num_frames"),
    ("images and videos are told apart by the records", "X"),
    # Qwen2.5-VL, Qwen3-VL
    (
        "names of data sets stand in Qwen's Python code; give the files with --data_path, shares of them in a YAML "
        "mixture",
        "dataset_use",
    ),
    ("each sample is a row of its batch", "data_flatten data_packing"),
    ("--video_fps chooses frames by the second", "base_interval"),
    # Early LLaVA
    ("the tower and --compression say how many tokens an image has", "image_token_len"),
    ("the image stands in front of its turn, as in LLaVA-1.5", "sep_image_conv_front"),
    (_NO_FSDP, "force_fsdp"),
    # Older transformers
    (_PRECISION, "half_precision_backend fp16_backend fp16_opt_level"),
    (_NO_FSDP, "sharded_ddp fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap"),
    ("the length of a sequence changes between layers, so it is not compiled", "torchdynamo"),
    ("the length of a sequence changes between layers, so it is not traced", "jit_mode_eval"),
    (_DEVICE, "use_ipex use_mps_device tpu_num_cores tpu_metrics_debug mp_parameters"),
    ("the backend of the processes is --ddp_backend", "xpu_backend"),
    ("no state is carried from batch to batch", "past_index"),
    ("no search over settings is done", "ray_scope"),
    ("it is now --per_device_train_batch_size", "per_gpu_train_batch_size"),
    ("it is now --per_device_eval_batch_size", "per_gpu_eval_batch_size"),
    ("it is now --optim adafactor", "adafactor"),
    ("batches are made by this program's own sampler", "split_batches dispatch_batches"),
    ("held-out data gives a loss and no predictions", "include_inputs_for_metrics use_legacy_prediction_loop"),
    (_HUB, "push_to_hub_model_id push_to_hub_organization push_to_hub_token"),
)
FOREIGN: dict[str, str] = {name: reason for reason, names in _REASONS for name in names.split()}
# Defaults of other programs and of older transformers releases, beside the values that switch anything off.
_FORMER_DEFAULTS = {"past_index": "-1", "ray_scope": "last", "fp16_opt_level": "o1", "mm_newline_position": "grid"}
_OFF = ("", "0", "0.0", "false", "no", "none", "null", "auto")


def is_switched_off(name: str, values: Iterable[str]) -> bool:
    """Whether a flag of `FOREIGN` asks for nothing.

    Raises:
        ValueError: if it asks for something; says why that cannot be had.
    """
    given = list(values)
    if given and all(value.lower() in (*_OFF, _FORMER_DEFAULTS.get(name, "")) for value in given):
        return True
    raise ValueError(f"--{' '.join([name, *given])} is not supported: {FOREIGN[name]}.")
