"""What towers made of a vision transformer of transformers have in common: sizes, and V2V behind the selected layer.

Shapes: B images (or frames), P patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llava.compression.config import V2VConfig
from llava.compression.v2v import V2VResult
from llava.model.multimodal_encoder.encode import TowerOutput, behind_selected, encode_images, has_cls


class TransformersTower(nn.Module):
    """A tower around a vision transformer, which runs only as far as the selected layer.

    Attributes:
        select_layer: index into the hidden states (0 is the embedding); features and scores come from this layer.
        select_feature: "patch" drops the CLS token, "cls_patch" keeps it. With V2V the CLS token always stays.
    """

    select_layer: int
    select_feature: str

    @property
    def model(self) -> Any:
        """The transformers model inside."""
        raise AttributeError(f"{type(self).__name__} does not say which model it holds.")

    @property
    def config(self) -> Any:
        """Its configuration."""
        return self.model.config

    @property
    def hidden_size(self) -> int:
        """Width of the features."""
        return int(self.config.hidden_size)

    @property
    def has_cls(self) -> bool:
        """Whether the first of its tokens is CLS."""
        return has_cls(self.model)

    @property
    def num_patches(self) -> int:
        """Patches of one image, CLS not counted."""
        return int(self.config.image_size // self.config.patch_size) ** 2

    def unused_modules(self) -> list[nn.Module]:
        """What stands behind the selected layer."""
        return behind_selected(self.model, [self.select_layer])

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        found: torch.dtype = self.model.embeddings.class_embedding.dtype
        return found

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        found: torch.device = self.model.embeddings.class_embedding.device
        return found

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


def check_select_feature(select_feature: str) -> str:
    """The same; ValueError for another than the two that there are."""
    if select_feature not in ("patch", "cls_patch"):
        raise ValueError(f"mm_vision_select_feature is {select_feature!r}; it must be patch or cls_patch.")
    return select_feature


def check_select_layer(select_layer: int, depth: int, field: str = "mm_vision_select_layer") -> None:
    """Raise ValueError for a layer that a tower of `depth` layers does not have, or the embedding.

    Args:
        select_layer: index into the hidden states.
        depth: layers of the tower.
        field: where the index stands, for the message.
    """
    if not -depth <= select_layer <= depth or select_layer == 0:
        raise ValueError(
            f"{field} is {select_layer}, but the tower has {depth} layers; "
            f"choose 1 to {depth}, or -1 to -{depth} counted from the end."
        )
