"""LLaVA's CLIP vision tower: weights, image processor, and V2V behind it.

The parameters keep LLaVA's names, `vision_tower.vision_model.*`, under this module.
Shapes: B images, P patches, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llava.compression.config import V2VConfig
from llava.compression.v2v import V2VResult
from llava.model.multimodal_encoder.encode import TowerOutput, behind_selected, encode_images, has_cls

logger = logging.getLogger(__name__)


class _Namespace(nn.Module):
    """Holds the CLIP model under the name that LLaVA's checkpoints use."""

    def __init__(self, vision_model: CLIPVisionModel) -> None:
        super().__init__()
        self.vision_model = vision_model


class CLIPVisionTower(nn.Module):
    """LLaVA's vision tower.

    Args:
        name: directory or hub name that weights and image processor come from.
        select_layer: index into the hidden states (0 is the embedding); features and scores come from this layer.
        select_feature: "patch" drops the CLS token, "cls_patch" keeps it. With V2V the CLS token always stays.
        config: dimensions; None reads them from `name`.

    The weights are random until `load_model` is called or a checkpoint that holds them is loaded.
    """

    def __init__(
        self,
        name: str,
        select_layer: int = -2,
        select_feature: str = "patch",
        config: CLIPVisionConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if select_feature not in ("patch", "cls_patch"):
            raise ValueError(f"mm_vision_select_feature is {select_feature!r}; it must be patch or cls_patch.")
        self.vision_tower_name = name
        self.select_layer = select_layer
        self.select_feature = select_feature
        made = CLIPVisionConfig(**config) if isinstance(config, Mapping) else config
        made = made or CLIPVisionConfig.from_pretrained(name)
        made._attn_implementation = "sdpa"
        self.vision_tower = _Namespace(CLIPVisionModel(made))
        depth = made.num_hidden_layers
        if not -depth <= select_layer <= depth or select_layer % (depth + 1) == 0:
            raise ValueError(
                f"mm_vision_select_layer is {select_layer}, but the tower has {depth} layers; "
                f"choose 1 to {depth}, or -1 to -{depth} counted from the end."
            )
        self.is_loaded = False
        size = made.image_size
        self.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
        self.requires_grad_(False)

    def load_model(self, device_map: Any = None) -> None:
        """Read weights and image processor from where the tower was made from; `device_map` is LLaVA's, and ignored."""
        if self.is_loaded:
            return
        loaded, info = CLIPVisionModel.from_pretrained(
            self.vision_tower_name, dtype=self.dtype, attn_implementation="sdpa", output_loading_info=True
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{self.vision_tower_name!r} lacks the weight {sorted(info['missing_keys'])[0]!r} of a CLIP tower; it "
                "is incomplete or another kind of model."
            )
        # Taken over as a whole: with ZeRO-3 its weights are partitioned already and cannot be copied one by one.
        self.vision_tower = _Namespace(loaded.to(self.device).requires_grad_(False))
        self.is_loaded = True
        if not self.read_image_processor(self.vision_tower_name):
            logger.warning(
                "There is no preprocessor_config.json at %r; CLIP's mean and standard deviation are used at %d pixels.",
                self.vision_tower_name,
                self.config.image_size,
            )

    def read_image_processor(self, source: str) -> bool:
        """Take the image processor from a directory or hub name; False, and no change, where it has none."""
        try:
            self.image_processor = CLIPImageProcessorPil.from_pretrained(source)
        except OSError:
            return False
        return True

    @property
    def model(self) -> CLIPVisionModel:
        """The transformers model inside."""
        return self.vision_tower.vision_model

    @property
    def config(self) -> CLIPVisionConfig:
        """Its configuration."""
        return self.model.config

    @property
    def hidden_size(self) -> int:
        """Width of the features."""
        return self.config.hidden_size

    @property
    def has_cls(self) -> bool:
        """Whether the first of its tokens is CLS."""
        return has_cls(self.model)

    @property
    def num_patches(self) -> int:
        """Patches of one image, CLS not counted."""
        return (self.config.image_size // self.config.patch_size) ** 2

    def unused_modules(self) -> list[nn.Module]:
        """What stands behind the selected layer."""
        return behind_selected(self.model, [self.select_layer])

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.model.embeddings.class_embedding.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.embeddings.class_embedding.device

    def tokens_per_image(self, v2v: V2VConfig | None) -> int:
        """Visual tokens that `forward` gives for one image."""
        if v2v is not None:
            return v2v.token_count(self.num_patches + self.has_cls)
        return self.num_patches + (self.select_feature == "cls_patch")

    def forward(self, images: Tensor, v2v: V2VConfig | None = None) -> Tensor:
        """Visual tokens of images [B, 3, height, width]: [B, tokens_per_image, D] in the images' data type."""
        if v2v is not None:
            return self.merge(images, v2v).tokens.to(images.dtype)
        features = self.encode(images).features.to(images.dtype)
        return features if self.select_feature == "cls_patch" else features[:, 1:]

    def merge(self, images: Tensor, v2v: V2VConfig) -> V2VResult:
        """V2V on images [B, 3, height, width]; also says what became of every patch."""
        return self.encode(images, v2v).merged(v2v)

    def encode(self, images: Tensor, v2v: V2VConfig | None = None) -> TowerOutput:
        """Run the tower up to the selected layer; with `v2v`, also give what it is scored and merged by."""
        return encode_images(self.model, images, self.select_layer, v2v)
