"""The kinds of recorded cases: which files and tensors a case of each kind has.

How a kind is replayed stands in `llava.verify.replaying`.
"""

from __future__ import annotations

from dataclasses import dataclass

_STAGE = r"stage\d+_(kept|kept_global|scores)_\d+"


@dataclass(frozen=True)
class Contents:
    """What a case of a kind holds beside `case.json`.

    Attributes:
        outputs: regular expression of the tensors that `outputs.safetensors` may record.
        needed: regular expression of the one (or those) without which there is nothing to compare with.
        inputs: tensors that `inputs.safetensors` must hold.
        has_inputs, has_outputs: whether there is such a file.
        has_model: whether `case.json` names a model.
        has_mode: whether `case.json` says if training's or inference's rule decides who votes; without, inference's.
        pixel_axes: axes of `pixels_u8`: 4 of images [M, 3, height, width], 5 of clips [B, 3, T, height, width].
    """

    outputs: str
    needed: str
    inputs: tuple[str, ...] = ()
    has_inputs: bool = True
    has_outputs: bool = True
    has_model: bool = True
    has_mode: bool = False
    pixel_axes: int = 4


_OF_THE_METHOD = {
    "v2v": Contents(
        "all_indices|anchor_indices|pool_indices|merge_indices|merge_assignment|cls_attention_sum|metric"
        "|hidden_states|hidden_states_save|projected",
        "projected",
        ("pixels_u8",),
    ),
    "t2v_stage": Contents(
        r"hidden_states|attention_mask|position_ids|labels|(kept|scores)_\d+",
        "hidden_states",
        (
            "hidden_states",
            "attention_mask",
            "position_ids",
            "labels",
            "image_position",
            "visual_tokens_now",
            "visual_tokens_next",
        ),
        has_mode=True,
    ),
    "full": Contents(
        "inputs_embeds|prepared_labels|prepared_mask|logits|loss|final_labels|final_mask|grad:.+|" + _STAGE,
        "logits",
        ("input_ids",),
        has_mode=True,
    ),
    "generate": Contents(
        "new_tokens|step_logits|kv_lengths_after_prefill|kv_lengths_at_end|last_position_per_layer|" + _STAGE,
        "new_tokens",
        ("input_ids",),
    ),
}
_TOWER = "attention_second_last|features|hidden_states|hidden_states_last|pooler_output"
_PIXELS = "sample|sample_ids|sum|sum_of_squares"
_OF_VIDEO_LLAVA = {
    "video_tower": Contents(_TOWER, "features", ("pixels_u8",), pixel_axes=5),
    "image_tower": Contents(_TOWER, "features", ("pixels_u8",)),
    "video_processing": Contents(f"frame_ids|{_PIXELS}", "sample", ("frames_u8",), has_model=False),
    "image_processing": Contents(f"variant_antialias_sample|{_PIXELS}", "sample", ("image_u8",), has_model=False),
    "frame_ids": Contents(r"total_\d+_frames_\d+", r"total_\d+_frames_\d+", has_inputs=False, has_model=False),
    "marks": Contents("", "", has_inputs=False, has_outputs=False, has_model=False),
    "video_llava_prepare": Contents(
        "attention_mask|image_projected|inputs_embeds|labels|logits_last|loss|position_ids|video_projected",
        "inputs_embeds",
        ("input_ids",),
    ),
}
_OF_LLAVA_NEXT = {
    "anyres_choice": Contents("best|grid|map_after_unpad|tokens_spatial_unpad", "best", ("sizes",), has_model=False),
    "anyres_pixels": Contents(r"crops_\d+", r"crops_\d+", has_model=False),
    "next_merge": Contents(r"merged_\d+", r"merged_\d+", ("image_sizes",), has_model=False),
    "next_video": Contents("merged", "merged", ("features",), has_model=False),
    "next_prepare": Contents(
        "attention_mask|inputs_embeds|labels|logits_last|loss|position_ids|projected|tower_features",
        "inputs_embeds",
        ("input_ids",),
    ),
}
KINDS = {**_OF_THE_METHOD, **_OF_VIDEO_LLAVA, **_OF_LLAVA_NEXT}
"""What a case holds, by the `kind` of its `case.json`."""
