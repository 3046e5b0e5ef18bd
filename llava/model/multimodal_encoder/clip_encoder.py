"""LLaVA's CLIP vision tower: weights, image processor, and V2V behind it.

The parameters keep LLaVA's names, `vision_tower.vision_model.*`, under this module.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel
from transformers.utils import IMAGE_PROCESSOR_NAME

from llava.common.json_files import read_object
from llava.model.multimodal_encoder.transformers_tower import (
    TransformersTower,
    check_select_feature,
    check_select_layer,
)

logger = logging.getLogger(__name__)


class _Namespace(nn.Module):
    """Holds the CLIP model under the name that LLaVA's checkpoints use."""

    def __init__(self, vision_model: CLIPVisionModel) -> None:
        super().__init__()
        self.vision_model = vision_model


class CLIPVisionTower(TransformersTower):
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
        self.vision_tower_name = name
        self.select_layer = select_layer
        self.select_feature = check_select_feature(select_feature)
        made = CLIPVisionConfig(**config) if isinstance(config, Mapping) else config
        made = made or CLIPVisionConfig.from_pretrained(name)
        made._attn_implementation = "sdpa"
        self.vision_tower = _Namespace(CLIPVisionModel(made))
        check_select_layer(select_layer, made.num_hidden_layers)
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
        """Take the image processor from a directory or hub name; False, and no change, where it has none.

        Raises:
            ValueError: if the directory's file is damaged, of which transformers says the same as of a missing one.
        """
        settings = Path(source) / IMAGE_PROCESSOR_NAME
        if settings.is_file():
            read_object(settings, "fetch or copy it anew", mark=False)
        try:
            self.image_processor = CLIPImageProcessorPil.from_pretrained(source)
        except OSError:
            return False
        return True

    @property
    def model(self) -> CLIPVisionModel:
        """The transformers model inside."""
        return self.vision_tower.vision_model
