"""The configuration of LLaVA on Llama: that of the language model, LLaVA's fields, and the compression block."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, LlamaConfig


class LlavaLlamaConfig(LlamaConfig):
    """Llama's configuration plus LLaVA's (`mm_*`) and the compression block.

    transformers looks models up by the name of this class, and has a `LlavaConfig` of its own. Fields that are not
    declared are kept as they are, as in every configuration of transformers.

    Args:
        mm_vision_tower: folder or hub name of the vision tower; None in a model without one.
        mm_vision_config: dimensions of the tower, as in its own `config.json`.
        mm_image_tower, mm_video_tower: folders or hub names of the two towers of a Video-LLaVA, in place of
            `mm_vision_tower`; None where it has none for that.
        mm_image_config, mm_video_config: their dimensions.
        mm_hidden_size: width of the tower's features.
        mm_projector_type: `linear`, `identity` or `mlpNx_gelu`.
        mm_vision_select_layer: layer of the tower whose features are used; -2 is the last but one.
        mm_vision_select_feature: `patch`, or `cls_patch` with the CLS token.
        mm_patch_merge_type: how crops of an image are joined, see `llava.model.crop_merging.MERGE_TYPES`.
        mm_use_im_start_end, mm_use_im_patch_token: whether the tokenizer was given LLaVA's tokens for these.
        image_aspect_ratio: `square` crops the centre out, `pad` pads the shorter side, `anyres` and `anyres_max_N` cut
            the image into crops, see `llava.common.anyres`.
        image_grid_pinpoints: canvases (width, height) that images are fitted to before they are cut, as a list, the
            same as text, or `(1x1),...,(6x6)`.
        image_unpad_digits: decimals that the rows and columns which an image keeps are rounded to; 7 of a model that
            comes from transformers, None of others.
        image_opening: how image files become RGB; None where the checkpoint does not record it.
        conversation_template: that the model was trained with; None where the checkpoint does not record it.
        compression: the budget, as `CompressionConfig.to_dict` writes it; None for none.
        tokenizer_model_max_length, max_sequence_length: context in tokens, as LLaVA's and MPT's checkpoints record it.
        tokenizer_padding_side: side that was padded in training.
        use_mm_proj, tune_mm_mlp_adapter, freeze_mm_mlp_adapter, mm_projector_lr, unfreeze_mm_vision_tower,
            mm_vision_tower_lr: what training records of itself.
    """

    model_type = "llava_llama"
    keys_to_ignore_at_inference = ["past_key_values", "cache", "layouts", "scores"]  # noqa: RUF012 (theirs)

    mm_vision_tower: str | None = None
    mm_vision_config: dict[str, Any] | None = None
    mm_image_tower: str | None = None
    mm_image_config: dict[str, Any] | None = None
    mm_video_tower: str | None = None
    mm_video_config: dict[str, Any] | None = None
    mm_hidden_size: int | None = None
    mm_projector_type: str = "linear"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_patch_merge_type: str = "flat"
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = False
    image_aspect_ratio: str = "square"
    image_grid_pinpoints: list[Any] | str | None = None
    image_unpad_digits: int | None = None
    image_opening: str | None = None
    conversation_template: str | None = None
    compression: dict[str, Any] | None = None
    tokenizer_model_max_length: int | None = None
    max_sequence_length: int | None = None
    tokenizer_padding_side: str | None = None
    use_mm_proj: bool | None = None
    tune_mm_mlp_adapter: bool | None = None
    freeze_mm_mlp_adapter: bool | None = None
    mm_projector_lr: float | None = None
    unfreeze_mm_vision_tower: bool | None = None
    mm_vision_tower_lr: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """A field that is null or empty in a file has its default."""
        for name in LLAVA_FIELDS:
            if getattr(self, name) in (None, ""):
                setattr(self, name, getattr(LlavaLlamaConfig, name))
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, without what LLaVA's programs would take for said: nulls, and LLaVA's fields of a Llama.

        They ask whether a field is there, and build a tower for `mm_vision_tower: null`.
        """
        held: dict[str, Any] = super().to_dict()
        for name in LLAVA_FIELDS:
            default = getattr(LlavaLlamaConfig, name)
            if held.get(name) is None or (not self.sees and held[name] == default):
                held.pop(name, None)
        return held

    @property
    def sees(self) -> bool:
        """Whether it describes a model with a tower."""
        return any((self.mm_vision_tower, self.mm_image_tower, self.mm_video_tower))

    @property
    def sees_videos(self) -> bool:
        """Whether it describes a Video-LLaVA: towers of its own for images and for videos."""
        return any((self.mm_image_tower, self.mm_video_tower))


LLAVA_FIELDS = tuple(name for name in LlavaLlamaConfig.__annotations__ if not name.startswith("_"))
"""What `LlavaConfig` has beside Llama's fields; the class holds their defaults."""

LlavaConfig = LlavaLlamaConfig
"""LLaVA's name for it."""

AutoConfig.register("llava_llama", LlavaConfig)
