"""Flags of other programs that train LLaVAs, and of older transformers releases, that this one does not honour.

LLaVA's own flags are in `llava.train.arguments`. One that stands here is an error in words unless it is switched off.
"""

from __future__ import annotations

from collections.abc import Iterable

_PARTS = "choose with --tune_mm_mlp_adapter, --freeze_backbone, --freeze_mm_mlp_adapter and --unfreeze_mm_vision_tower"
_TILES = "images are one square each, as in LLaVA-1.5; tiles are not supported"
_VIDEO = "training reads images, not videos"
_RESAMPLER = "there is no resampler; --compression says how many visual tokens remain"
_ROPE = "positions are those of the checkpoint; write rope_parameters into its config.json"
_BATCHES = "use --group_by_modality_length"
_PRECISION = "--bf16 and --fp16 use PyTorch's own mixed precision"
_HUB = "nothing is uploaded; use `hf upload`"
_NO_FSDP = "weights are shared out by DeepSpeed's ZeRO; give --deepspeed"
_DEVICE = "the device is found by itself; --use_cpu chooses the CPU"

# Name and reason; where each comes from is said above its group.
FOREIGN: dict[str, str] = {
    # LLaVA-NeXT, LLaVA-OneVision
    "model_class_name": "config.json says what the model is",
    "mm_tunable_parts": _PARTS,
    "unfreeze_language_model": _PARTS,
    "tune_mm_vision_resampler": _RESAMPLER,
    "freeze_mm_vision_resampler": _RESAMPLER,
    "vision_tower_pretrained": "--vision_tower names the weights as well",
    "mm_resampler_type": _RESAMPLER,
    "mm_mask_drop_mode": _RESAMPLER,
    "mm_mask_drop_skip_percentage": _RESAMPLER,
    "mm_mask_drop_ratio": _RESAMPLER,
    "mm_mask_drop_ratio_upper": _RESAMPLER,
    "mm_mask_drop_ratio_lower": _RESAMPLER,
    "mm_spatial_pool_stride": _RESAMPLER,
    "mm_spatial_pool_mode": _RESAMPLER,
    "mm_spatial_pool_out_channels": _RESAMPLER,
    "mm_perceiver_depth": _RESAMPLER,
    "mm_perceiver_latents": _RESAMPLER,
    "mm_perceiver_ff_mult": _RESAMPLER,
    "mm_perceiver_pretrained": _RESAMPLER,
    "mm_qformer_depth": _RESAMPLER,
    "mm_qformer_latents": _RESAMPLER,
    "mm_qformer_pretrained": _RESAMPLER,
    "rope_scaling_factor": _ROPE,
    "rope_scaling_type": _ROPE,
    "use_pos_skipping": _ROPE,
    "pos_skipping_range": _ROPE,
    "s2": _TILES,
    "s2_scales": _TILES,
    "mm_newline_position": _TILES,
    "image_grid_pinpoints": _TILES,
    "image_crop_resolution": _TILES,
    "image_split_resolution": _TILES,
    "add_faster_video": _VIDEO,
    "faster_token_stride": _VIDEO,
    "video_folder": _VIDEO,
    "video_fps": _VIDEO,
    "frames_upbound": _VIDEO,
    "add_time_instruction": _VIDEO,
    "force_sample": _VIDEO,
    "early_mix_text": "text and images share batches as --group_by_modality_length says",
    "group_by_varlen": _BATCHES,
    "group_by_modality_length_auto": _BATCHES,
    # Video-LLaVA
    "image_tower": "the tower is --vision_tower",
    "video_tower": _VIDEO,
    "num_frames": _VIDEO,
    "tokenizer_model_max_length": "the longest sequence is --model_max_length",
    "X": _VIDEO,
    # Early LLaVA
    "tune_mm_mlp": _PARTS,
    "image_token_len": "the tower and --compression say how many tokens an image has",
    "sep_image_conv_front": "the image stands in front of its turn, as in LLaVA-1.5",
    "force_fsdp": _NO_FSDP,
    # Older transformers
    "half_precision_backend": _PRECISION,
    "fp16_backend": _PRECISION,
    "fp16_opt_level": _PRECISION,
    "sharded_ddp": _NO_FSDP,
    "fsdp_min_num_params": _NO_FSDP,
    "fsdp_transformer_layer_cls_to_wrap": _NO_FSDP,
    "torchdynamo": "the length of a sequence changes between layers, so it is not compiled",
    "jit_mode_eval": "the length of a sequence changes between layers, so it is not traced",
    "use_ipex": _DEVICE,
    "use_mps_device": _DEVICE,
    "xpu_backend": "the backend of the processes is --ddp_backend",
    "tpu_num_cores": _DEVICE,
    "tpu_metrics_debug": _DEVICE,
    "mp_parameters": _DEVICE,
    "past_index": "no state is carried from batch to batch",
    "ray_scope": "no search over settings is done",
    "per_gpu_train_batch_size": "it is now --per_device_train_batch_size",
    "per_gpu_eval_batch_size": "it is now --per_device_eval_batch_size",
    "adafactor": "it is now --optim adafactor",
    "split_batches": "batches are made by this program's own sampler",
    "dispatch_batches": "batches are made by this program's own sampler",
    "include_inputs_for_metrics": "held-out data gives a loss and no predictions",
    "use_legacy_prediction_loop": "held-out data gives a loss and no predictions",
    "push_to_hub_model_id": _HUB,
    "push_to_hub_organization": _HUB,
    "push_to_hub_token": _HUB,
}
# What older transformers releases had by default, beside the values that switch anything off.
_FORMER_DEFAULTS = {"past_index": "-1", "ray_scope": "last", "fp16_opt_level": "o1"}
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
