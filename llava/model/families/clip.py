"""What families with CLIP-like towers share: V2V on each image, crop or frame by itself, then the projector.

Shapes: M images (or crops, or frames), N0 tokens of each, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.profiler import record_function

from llava.compression.config import V2VConfig
from llava.compression.v2v import V2VResult
from llava.model.compressed_model import CompressedModel
from llava.model.multimodal_encoder.encode import behind_selected, encode_images, has_cls
from llava.model.multimodal_encoder.transformers_tower import check_select_layer
from llava.model.placeholders import VisualSpan


class ClipFamily(CompressedModel):
    """A family with towers like CLIP's, all of one kind, and LLaVA's two inputs that choose among their features."""

    def unused_modules(self) -> tuple[nn.Module, ...]:
        """Layers of the towers behind the last one that is selected, and the norm at the end."""
        selected = self.config.vision_feature_layer
        found: list[nn.Module] = []
        for tower in self.vision_towers():
            found += behind_selected(tower, [selected] if isinstance(selected, int) else selected)
        return tuple(found)

    def check_tower(self) -> None:
        """Refuse towers unlike CLIP's, and features of several layers."""
        for tower in self.vision_towers():
            check_tower(tower, self.config.vision_feature_layer)

    @property
    def _side(self) -> int:
        """Patches on a side of an image, crop or frame."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def tower_tokens(self) -> int | None:
        """Tokens of one image, crop or frame, CLS included; None for towers whose images differ in size."""
        tower = self.vision_towers()[0]
        return image_tokens(tower) if hasattr(tower, "embeddings") else None

    def has_cls(self) -> bool:
        """Not where the tower is SigLIP's, for example."""
        tower = self.vision_towers()[0]
        return not hasattr(tower, "embeddings") or has_cls(tower)

    def selected(self, inputs: Mapping[str, Any]) -> tuple[Any, str]:
        """The layer of the tower whose features are taken, and `default` (without CLS) or `full`."""
        names = ("vision_feature_layer", "vision_feature_select_strategy")
        layer, strategy = (getattr(self.config, name) if inputs.get(name) is None else inputs[name] for name in names)
        return layer, strategy

    def stock_spans(self, inputs: Mapping[str, Any]) -> list[VisualSpan]:
        """One span an image, with the features that the stock model makes of what was given."""
        given = {name: value for name, value in inputs.items() if value is not None}
        features = self.model.get_image_features(**given, return_dict=True).pooler_output
        return [VisualSpan(image, len(image)) for image in features]

    def merged(self, tower: Any, pixels: Tensor, inputs: Mapping[str, Any], v2v: V2VConfig) -> Tensor:
        """Visual tokens [M, N0, D] of images [M, 3, height, width]."""
        return merged_features(tower, self.model.multi_modal_projector, pixels, self.selected(inputs)[0], v2v)

    def scored(self, tower: Any, pixels: Tensor, inputs: Mapping[str, Any], v2v: V2VConfig) -> V2VResult:
        """V2V on images [M, 3, height, width], in the tower's width; also says what became of every patch."""
        return merged_patches(tower, pixels, self.selected(inputs)[0], v2v)


def merged_features(
    tower: Any, projector: Any, pixels: Tensor, select_layer: int | list[int], v2v: V2VConfig
) -> Tensor:
    """Visual tokens [M, N0, D] of images [M, 3, height, width].

    Raises:
        ValueError: if features of several layers are asked for, or the tower is of another kind.
    """
    merged = merged_patches(tower, pixels, select_layer, v2v).tokens
    with record_function("llava.projector"):
        return projector(merged)


def merged_patches(tower: Any, pixels: Tensor, select_layer: int | list[int], v2v: V2VConfig) -> V2VResult:
    """V2V on images [M, 3, height, width]; errors as in `merged_features`."""
    check_tower(tower, select_layer)
    return encode_images(tower, pixels, single_layer(select_layer), v2v).merged(v2v)


def single_layer(select_layer: int | list[int]) -> int:
    """The one layer that V2V scores and merges.

    Raises:
        ValueError: if there are several.
    """
    if isinstance(select_layer, int):
        return select_layer
    if len(select_layer) == 1:
        return select_layer[0]
    raise ValueError(
        f"vision_feature_layer is {select_layer}; V2V scores and merges the tokens of one layer, so use a single one, "
        "or t2v without v2v."
    )


def check_tower(tower: Any, select_layer: int | list[int]) -> None:
    """Raise ValueError unless a tower is built like CLIP's and has the one layer that is asked for."""
    layer = single_layer(select_layer)
    encoder = getattr(tower, "encoder", None)
    if not hasattr(tower, "embeddings") or not hasattr(encoder, "layers"):
        raise ValueError(
            f"The vision tower is a {type(tower).__name__}, which V2V cannot look into; towers like CLIP's and "
            "SigLIP's are accepted. Use a compression with t2v alone."
        )
    check_select_layer(layer, len(tower.encoder.layers), "vision_feature_layer")


def image_tokens(tower: Any) -> int:
    """Tokens that a tower makes of one image, CLS included."""
    config = tower.config
    return (config.image_size // config.patch_size) ** 2 + has_cls(tower)
