"""What makes a language model a LLaVA: a vision tower and a projector beside it.

Knows nothing of the decoder. Shapes: M images, n visual tokens of an image, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from llava.compression.config import V2VConfig
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_VID_END_TOKEN,
    DEFAULT_VID_START_TOKEN,
)
from llava.model.crop_merging import has_newline, require_merge_type
from llava.model.llava_config import LlavaConfig
from llava.model.multimodal_encoder.builder import build_image_tower, build_video_tower, build_vision_tower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.weights import grow_vocabulary, load_projector

if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


_OF_MODEL_ARGUMENTS = ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature", "mm_patch_merge_type")


class _OpensWithTower(_Base):
    """Stands before a class of transformers whose checkpoints may leave out the vision tower."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As in transformers; where the checkpoint does not hold the tower, it is read from where `config` says."""
        path, opened = pretrained_model_name_or_path, super().from_pretrained  # type: ignore[misc]
        model, info = opened(path, *args, output_loading_info=True, **kwargs)
        for name, tower in model.named_towers():
            tower.is_loaded = not any(f"{name}." in key for key in info["missing_keys"])
            tower.load_model()
            tower.read_image_processor(str(path))
            tower.requires_grad_(False)
        return (model, info) if output_loading_info else model


class LlavaMetaModel(_OpensWithTower):
    """Adds the tower and the projector to a transformers language model (without head)."""

    config: Any
    embed_tokens: Any
    vision_tower: VisionTower | None
    image_tower: Any
    video_tower: Any
    mm_projector: nn.Module | None
    image_newline: nn.Parameter | None

    def build_vision_modules(self) -> None:
        """Make the towers and the projector that the configuration names, if any; weights are not loaded.

        And `image_newline` [D], where crops are merged with it.
        """
        self.vision_tower = self.image_tower = self.video_tower = None
        self.mm_projector = None
        self.image_newline = None
        self._build_missing_towers()
        if self.config.sees:
            self.mm_projector = build_vision_projector(self.config)
            if self.config.mm_vision_tower and has_newline(require_merge_type(self.config.mm_patch_merge_type)):
                self.image_newline = _new_newline(self.config.hidden_size)

    def named_towers(self) -> list[tuple[str, VisionTower]]:
        """The towers there are, by the names of their attributes; of a Video-LLaVA that for images comes first."""
        named = [(name, getattr(self, name)) for name in ("vision_tower", "image_tower", "video_tower")]
        return [(name, tower) for name, tower in named if tower is not None]

    def get_vision_tower(self) -> VisionTower | None:
        """The tower, of a Video-LLaVA that for images; None in a model without one."""
        return next((tower for _, tower in self.named_towers()), None)

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Build tower and projector before training, from LLaVA's model arguments.

        Loads the tower's weights; makes the projector, or reads it from `pretrain_mm_mlp_adapter`.

        Raises:
            ValueError: if the projector file lacks a weight or holds one of another shape; names it. Or if the two
                towers of a Video-LLaVA differ in width.
        """
        self._write_vision_config(model_args)
        self._build_missing_towers()
        widths = {tower.vision_tower_name: tower.hidden_size for _, tower in self.named_towers()}
        if len(set(widths.values())) != 1:
            raise ValueError(f"The towers have the widths {widths}; one projector serves both, so they must be equal.")
        for name, tower in self.named_towers():
            tower.load_model()
            tower.to(self.embed_tokens.weight)  # its device and data type
            self.config.mm_hidden_size = tower.hidden_size
            setattr(self.config, f"mm_{name.removesuffix('_tower')}_config", tower.config.to_dict())
        if self.mm_projector is None:
            self.mm_projector = build_vision_projector(self.config)
            self.mm_projector.to(self.embed_tokens.weight)
        self.mm_projector.requires_grad_(True)
        if self.image_newline is None and has_newline(require_merge_type(self.config.mm_patch_merge_type)):
            newline = _new_newline(self.config.hidden_size)
            self.image_newline = nn.Parameter(newline.to(self.embed_tokens.weight))
        adapter = getattr(model_args, "pretrain_mm_mlp_adapter", None)
        if adapter:
            load_projector(self.mm_projector, adapter, self.image_newline)

    def _build_missing_towers(self) -> None:
        if self.vision_tower is None and self.config.mm_vision_tower:
            self.vision_tower = build_vision_tower(self.config)
        if self.image_tower is None:
            self.image_tower = build_image_tower(self.config)
        if self.video_tower is None:
            self.video_tower = build_video_tower(self.config)

    def _write_vision_config(self, model_args: Any) -> None:
        self.config.use_mm_proj = True
        for kind in ("vision", "image", "video"):
            setattr(self.config, f"mm_{kind}_tower", getattr(model_args, f"{kind}_tower", None) or None)
        for field in _OF_MODEL_ARGUMENTS:
            value = getattr(model_args, field, None)
            setattr(self.config, field, getattr(LlavaConfig, field) if value is None else value)


def _new_newline(width: int) -> nn.Parameter:
    """A random `image_newline` [D], as long as a unit vector, as in LLaVA."""
    return nn.Parameter(torch.randn(width) / math.sqrt(width))


class LlavaMetaForCausalLM(_OpensWithTower):
    """Adds the path from images to visual tokens in the language model's width."""

    config: Any
    model: Any
    name_or_path: Any
    resize_token_embeddings: Any
    get_input_embeddings: Any
    get_output_embeddings: Any

    def get_model(self) -> Any:
        """The language model without head."""
        return self.model

    def get_vision_tower(self) -> VisionTower | None:
        """The tower, None in a model without one."""
        return self.get_model().get_vision_tower()

    def get_image_tower(self) -> Any:
        """The tower of a Video-LLaVA for images, None in a model without one."""
        return self.get_model().image_tower

    def get_video_tower(self) -> Any:
        """The tower of a Video-LLaVA for videos, None in a model without one."""
        return self.get_model().video_tower

    def processors(self) -> dict[str, Any]:
        """What makes the pixels of `image` and `video` for a Video-LLaVA's towers; None for one that is not there."""
        towers = {"image": self.get_image_tower(), "video": self.get_video_tower()}
        return {kind: None if tower is None else tower.image_processor for kind, tower in towers.items()}

    def named_towers(self) -> list[tuple[str, VisionTower]]:
        """As the model without head has them."""
        found: list[tuple[str, VisionTower]] = self.get_model().named_towers()
        return found

    def encode_images(self, images: Tensor, v2v: V2VConfig | None = None) -> Tensor | Sequence[Tensor]:
        """Images [M, 3, height, width] to visual tokens of the language model's width: [n, D] for each image.

        V2V acts before the projector. A tensor [M, n, D] where all images bring as many tokens.
        """
        return self._projected(self.require_tower()(images, v2v))

    def encode_videos(
        self, videos: Tensor | Sequence[Tensor], v2v: V2VConfig | None = None
    ) -> Tensor | Sequence[Tensor]:
        """Videos [M, 3, T, height, width] to visual tokens of the language model's width: [n, D] for each frame.

        V2V shortens each frame by itself, before the projector. All tokens of a frame stay without it, CLS too.

        Raises:
            ValueError: if the model has no tower for videos, or its attention over time is for another T.
        """
        tower = self.get_video_tower()
        if tower is None:
            raise ValueError("The model was given a video, but it has no tower for such (mm_video_tower).")
        return self._projected(tower(videos, v2v))

    def _projected(self, features: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
        """Features [M, n, D of the tower], or one by one, in the language model's width."""
        if isinstance(features, Tensor):
            return self.project(features)
        return self.project(torch.cat(list(features))).split([len(image) for image in features])

    def project(self, features: Tensor) -> Tensor:
        """Features of the tower in the language model's width."""
        model = self.get_model()
        with record_function("llava.projector"):
            projected: Tensor = model.mm_projector(features.to(model.embed_tokens.weight.dtype))
        return projected

    def require_tower(self) -> VisionTower:
        """The tower; raise ValueError in a model without one."""
        tower = self.get_vision_tower()
        if tower is None:
            raise ValueError(
                "The model has no vision tower but was given an image; load a LLaVA checkpoint or call "
                "initialize_vision_modules first."
            )
        return tower

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Add LLaVA's optional image tokens to tokenizer and embeddings (`mm_use_im_patch_token`, `..._start_end`).

        Tokens that have no row yet get one, the mean of the others; a row that the checkpoint has stays what it is.
        """
        added = []
        if getattr(model_args, "mm_use_im_patch_token", False):
            added.append(DEFAULT_IMAGE_PATCH_TOKEN)
        if getattr(model_args, "mm_use_im_start_end", False):
            added += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
            added += [DEFAULT_VID_START_TOKEN, DEFAULT_VID_END_TOKEN] if self.config.mm_video_tower else []
        tokenizer.add_tokens(added, special_tokens=True)
        old = self.config.vocab_size
        rows = max([old, *(tokenizer.convert_tokens_to_ids(token) + 1 for token in added)])
        if rows == old:
            return
        grow_vocabulary(self, rows)
