"""The two towers of Video-LLaVA, one for images and one for videos, each with its processor.

The parameters are called `image_tower.*` and `video_tower.*` under these modules, as published.
Shapes: B images or clips, T frames of a clip, P patches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from llava.common.json_files import read_object
from llava.compression.config import V2VConfig
from llava.model.multimodal_encoder.encode import TowerOutput
from llava.model.multimodal_encoder.languagebind import (
    LanguageBindVideoModel,
    LanguageBindVisionModel,
    languagebind_config,
)
from llava.model.multimodal_encoder.languagebind_adapters import is_wrapped, merged
from llava.model.multimodal_encoder.languagebind_pixels import LanguageBindImageProcessor, LanguageBindVideoProcessor
from llava.model.multimodal_encoder.transformers_tower import (
    TransformersTower,
    check_select_feature,
    check_select_layer,
)
from llava.model.weights import read_header, read_state_dict, weight_files

NAMES_IN_LANGUAGEBIND = {r"^vision_model\.": ""}
"""Renaming of a tower's weights in a whole LanguageBind model, which holds a text model too."""


class _LanguageBindTower(TransformersTower):
    """A tower whose weights are random until `load_model` is called or a checkpoint that holds them is loaded.

    Args:
        name: directory or hub name of the whole LanguageBind model that the weights come from.
        select_layer: index into the hidden states; features and scores come from this layer.
        config: `config.json` of such a model, or its `vision_config`; None reads it from `name`.
    """

    model_class: ClassVar[type[LanguageBindVisionModel]]
    model_type: ClassVar[str]
    attribute: ClassVar[str]

    def __init__(self, name: str, select_layer: int, config: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.vision_tower_name = name
        self.select_layer = select_layer
        made = languagebind_config(read_tower_config(name, self.model_type) if config is None else config)
        made._attn_implementation = "sdpa"
        check_select_layer(select_layer, made.num_hidden_layers)
        setattr(self, self.attribute, self.model_class(made))
        self.is_loaded = False
        self.requires_grad_(False)

    @property
    def model(self) -> Any:
        """The vision transformer inside."""
        return getattr(self, self.attribute)

    def load_model(self, device_map: Any = None) -> None:
        """Read the weights from where the tower was made from; `device_map` is LLaVA's, and ignored.

        Raises:
            ValueError: if one is missing.
        """
        if self.is_loaded:
            return
        source: dict[str, Any] = {"pretrained_model_name_or_path": self.vision_tower_name}
        held = self._with_adapters()
        if held is not None:
            source = {"pretrained_model_name_or_path": None, "state_dict": held}
        loaded, info = self.model_class.from_pretrained(
            **source,
            config=self.config,
            dtype=self.dtype,
            key_mapping=NAMES_IN_LANGUAGEBIND,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{self.vision_tower_name!r} lacks the weight {sorted(info['missing_keys'])[0]!r} of a LanguageBind "
                "tower; it is incomplete or another kind of model."
            )
        loaded._weight_conversions = []
        # Taken over as a whole: with ZeRO-3 its weights are partitioned already and cannot be copied one by one.
        setattr(self, self.attribute, loaded.to(self.device).requires_grad_(False))
        self.is_loaded = True

    def _with_adapters(self) -> dict[str, Tensor] | None:
        """The weights of a folder whose encoder is wrapped in adapters, merged; None of any other."""
        files = weight_files(self.vision_tower_name)
        if not is_wrapped(name for path in files for name in read_header(path)):
            return None
        state = {name: tensor for path in files for name, tensor in read_state_dict(path).items()}
        return merged(state, self.config.lora_r, self.config.lora_alpha)

    def read_image_processor(self, source: str) -> bool:
        """False: how pixels are made is fixed by the kind of the tower."""
        return False


class LanguageBindImageTower(_LanguageBindTower):
    """The tower of Video-LLaVA for images."""

    model_class = LanguageBindVisionModel
    model_type = "LanguageBindImage"
    attribute = "image_tower"

    def __init__(
        self, name: str, select_layer: int = -2, select_feature: str = "patch", config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(name, select_layer, config)
        self.select_feature = check_select_feature(select_feature)
        self.image_processor = LanguageBindImageProcessor(self.config.image_size)


class LanguageBindVideoTower(_LanguageBindTower):
    """The tower of Video-LLaVA for videos; all tokens of a frame stay, CLS too, whatever the select feature says."""

    model_class = LanguageBindVideoModel
    model_type = "LanguageBindVideo"
    attribute = "video_tower"
    select_feature = "cls_patch"

    def __init__(self, name: str, select_layer: int = -2, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(name, select_layer, config)
        self.video_processor = LanguageBindVideoProcessor(self.config.num_frames, side=self.config.image_size)

    @property
    def image_processor(self) -> LanguageBindVideoProcessor:
        """That of videos, under the name that towers share."""
        return self.video_processor

    @property
    def num_frames(self) -> int:
        """Frames of a clip; a tower without attention over time takes others as well."""
        return int(self.config.num_frames)

    def forward(self, images: Tensor | Sequence[Tensor], v2v: V2VConfig | None = None) -> Tensor:
        """Visual tokens of clips [B, 3, T, height, width]: [B * T, tokens_per_image, D], clip behind clip.

        Args:
            images: the clips, as a tensor or one by one; without attention over time T may differ.
            v2v: what shortens each frame by itself.
        """
        return super().forward(self._frames(images), v2v)

    def encode(self, images: Tensor | Sequence[Tensor], v2v: V2VConfig | None = None) -> TowerOutput:
        """Run the tower on clips [B, 3, T, height, width], or on their frames, which `forward` makes of them."""
        return super().encode(self._frames(images), v2v)

    def _frames(self, clips: Tensor | Sequence[Tensor]) -> Tensor:
        """Frames [B * T, 3, height, width] of clips [B, 3, T, height, width]; frames stay what they are."""
        if isinstance(clips, Tensor) and clips.dim() == 4:
            return clips
        for clip in clips:
            self.check_clip(clip.shape[1])
        shapes = sorted({tuple(clip.shape[2:]) for clip in clips})
        if len(shapes) > 1:
            raise ValueError(
                f"The frames of videos of one batch are {', '.join(map(str, shapes))} pixels; make all of them "
                "with the model's own video processor."
            )
        return torch.cat([clip.transpose(0, 1) for clip in clips])

    def check_clip(self, frames: int) -> None:
        """Raise ValueError for a clip of another length than the attention over time was trained for."""
        if self.config.add_time_attn and frames != self.num_frames:
            raise ValueError(
                f"A video has {frames} frames, but the video tower attends over {self.num_frames} (num_frames of its "
                f"config); take {self.num_frames} frames of it, at equal distances."
            )


def read_tower_config(name: str, kind: str) -> dict[str, Any]:
    """The content of `config.json` of a LanguageBind model in a folder or on the hub.

    Args:
        name: folder or hub name.
        kind: its `model_type`: `LanguageBindImage` or `LanguageBindVideo`.

    Raises:
        ValueError: if there is none, or it is another model's, whose pixels would be made otherwise.
    """
    path = Path(name) / "config.json"
    if not Path(name).is_dir():
        try:
            path = Path(hf_hub_download(name, "config.json"))
        except (OSError, EntryNotFoundError, LocalEntryNotFoundError, HFValidationError) as error:
            raise ValueError(
                f"The tower {name!r} is no folder here and its config.json cannot be fetched from the hub; give the "
                "tower's folder."
            ) from error
    held = read_object(path, "fetch or copy it anew", mark=False)
    if held.get("model_type") != kind:
        raise ValueError(
            f"The tower {name!r} is of model_type {held.get('model_type')!r}, where a Video-LLaVA needs a {kind}. A "
            "LLaVA with one CLIP tower is made with --vision_tower."
        )
    return held
