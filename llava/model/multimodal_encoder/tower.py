"""The interface of vision towers, as the rest of the model uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llava.compression.config import V2VConfig
from llava.compression.v2v import V2VResult


class VisionTower(Protocol):
    """A module that turns images into visual tokens, with V2V if asked to; its class stands in `builder.TOWERS`."""

    vision_tower_name: str
    select_layer: int
    image_processor: Any
    is_loaded: bool

    @property
    def has_cls(self) -> bool:
        """Whether the first of the tokens that V2V finds is CLS."""

    @property
    def num_patches(self) -> int:
        """Patches of one image, CLS not counted."""

    @property
    def hidden_size(self) -> int:
        """Width of the features."""

    @property
    def config(self) -> Any:
        """Its configuration."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    def tokens_per_image(self, v2v: V2VConfig | None) -> int:
        """Visual tokens that a call gives for one image."""

    def __call__(self, images: Tensor, v2v: V2VConfig | None = None) -> Tensor | Sequence[Tensor]:
        """Visual tokens of images [M, 3, height, width]: for each image [n, D]; n may differ."""

    def merge(self, images: Tensor, v2v: V2VConfig) -> V2VResult:
        """V2V on images [M, 3, height, width]; also says what became of every patch."""

    def unused_modules(self) -> Sequence[nn.Module]:
        """Its modules on which no visual token depends."""

    def load_model(self, device_map: Any = None) -> None:
        """Read weights and image processor from where the tower was made from."""

    def read_image_processor(self, source: str) -> bool:
        """Take the image processor from a directory or hub name; False, and no change, where it has none."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """As of any module."""
