"""What makes a language model a LLaVA: a vision tower, a projector, and images spliced into the text.

Knows nothing of the decoder's inside. Shapes: B rows, T positions before splicing, L after it, M images, N visual
tokens of an image, D width.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llava.compression.config import CompressionConfig, V2VConfig
from llava.compression.layout import TokenLayout
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN, IMAGE_TOKEN_INDEX
from llava.model.accepted_inputs import check_padding_mask
from llava.model.collectives import gathered, ranks_must_agree, whole_shape
from llava.model.image_inputs import image_tensors
from llava.model.llava_config import LlavaConfig
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.splice import SplicePlan, check_shapes, plan_splice, splice_embeddings
from llava.model.weights import read_state_dict

if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object

logger = logging.getLogger(__name__)


_OF_MODEL_ARGUMENTS = (
    "mm_projector_type",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "mm_patch_merge_type",
)


class _OpensWithTower(_Base):
    """Stands before a class of transformers whose checkpoints may leave out the vision tower."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As in transformers; where the checkpoint does not hold the tower, it is read from where `config` says."""
        path, opened = pretrained_model_name_or_path, super().from_pretrained  # type: ignore[misc]
        model, info = opened(path, *args, output_loading_info=True, **kwargs)
        tower = model.get_vision_tower()
        if tower is not None:
            tower.is_loaded = not any("vision_tower." in name for name in info["missing_keys"])
            tower.load_model()
            tower.read_image_processor(str(path))
            tower.requires_grad_(False)
        return (model, info) if output_loading_info else model


class LlavaMetaModel(_OpensWithTower):
    """Adds the tower and the projector to a transformers language model (without head)."""

    config: Any
    embed_tokens: Any
    vision_tower: CLIPVisionTower | None
    mm_projector: nn.Module | None

    def build_vision_modules(self) -> None:
        """Make the tower and the projector that the configuration names, if any; weights are not loaded."""
        self.vision_tower = None
        self.mm_projector = None
        if self.config.mm_vision_tower:
            self.vision_tower = build_vision_tower(self.config)
            self.mm_projector = build_vision_projector(self.config)

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """The tower, None in a model without one."""
        return self.vision_tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Give a language model its eyes before training, from LLaVA's model arguments.

        Loads the tower's weights; makes the projector, or reads it from `pretrain_mm_mlp_adapter`.

        Raises:
            ValueError: if the projector file lacks a weight or holds one of another shape; names it.
        """
        self._write_vision_config(model_args)
        if self.vision_tower is None:
            self.vision_tower = build_vision_tower(self.config)
        self.vision_tower.load_model()
        self.vision_tower.to(device=self.config_device(), dtype=self.config_dtype())
        self.config.mm_hidden_size = self.vision_tower.hidden_size
        self.config.mm_vision_config = self.vision_tower.config.to_dict()
        if self.mm_projector is None:
            self.mm_projector = build_vision_projector(self.config)
            self.mm_projector.to(device=self.config_device(), dtype=self.config_dtype())
        self.mm_projector.requires_grad_(True)
        adapter = getattr(model_args, "pretrain_mm_mlp_adapter", None)
        if adapter:
            load_projector(self.mm_projector, adapter)

    def _write_vision_config(self, model_args: Any) -> None:
        self.config.use_mm_proj = True
        self.config.mm_vision_tower = model_args.vision_tower
        for field in _OF_MODEL_ARGUMENTS:
            value = getattr(model_args, field, None)
            setattr(self.config, field, getattr(LlavaConfig, field) if value is None else value)

    def config_device(self) -> torch.device:
        """Device of the language model."""
        return self.embed_tokens.weight.device

    def config_dtype(self) -> torch.dtype:
        """Data type of the language model."""
        return self.embed_tokens.weight.dtype


class LlavaMetaForCausalLM(_OpensWithTower):
    """Adds the path from images and text to embeddings and their layout."""

    config: Any
    model: Any
    name_or_path: Any
    resize_token_embeddings: Any
    get_input_embeddings: Any
    get_output_embeddings: Any

    def get_model(self) -> Any:
        """The language model without head."""
        return self.model

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """The tower, None in a model without one."""
        return self.get_model().get_vision_tower()

    @property
    def compression(self) -> CompressionConfig:
        """What `config.json` says under "compression"; nothing there means no compression."""
        return CompressionConfig.resolve(self.config.compression)

    def set_compression(self, compression: CompressionConfig | str | dict[str, Any] | None) -> None:
        """Make a configuration, preset or YAML file the model's own; it is saved with the checkpoint.

        Raises:
            ValueError: if it does not fit the tower or the depth of the language model.
        """
        resolved = CompressionConfig.resolve(compression)
        tower = self.get_vision_tower()
        if resolved.v2v is not None and tower is not None:
            tower.tokens_per_image(resolved.v2v)
        if resolved.t2v is not None:
            resolved.t2v.check_depth(self.config.num_hidden_layers)
        resolved.check_made_for(self.config.model_type, self.config.num_hidden_layers)
        self.config.compression = resolved.to_dict()

    def visual_tokens_per_image(self, compression: CompressionConfig | None = None) -> int:
        """Visual tokens that one image brings into the language model."""
        compression = compression or self.compression
        return self._tower().tokens_per_image(compression.v2v)

    def encode_images(self, images: Tensor, v2v: V2VConfig | None = None) -> Tensor:
        """Images [M, 3, height, width] to the language model's width: [M, N, D]. V2V acts before the projector."""
        features = self._tower()(images, v2v)
        projector = self.get_model().mm_projector
        return projector(features.to(self.get_model().config_dtype()))

    def prepare_multimodal_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        images: Any = None,
        query_mask: Tensor | None = None,
        compression: CompressionConfig | None = None,
        padding_side: str = "right",
        answers: Tensor | None = None,
    ) -> tuple[Tensor, TokenLayout]:
        """Embed the text, encode the images and splice them in.

        Args:
            input_ids: int64 [B, T] with `IMAGE_TOKEN_INDEX` where images go.
            attention_mask: [B, T], 0 on padding of either side.
            labels: int64 [B, T], -100 where there is no target.
            images: one for each placeholder in reading order, or one a row (those of rows without a placeholder
                are dummies); a tensor [M, 3, height, width] or a list of [3, ...] or [crops, 3, ...]. Arrays, lists
                of each row's images and what an image processor returns are taken as well; see `image_tensors`.
            query_mask: int64 [B, T], see `llava.compression.salience.QueryRole`.
            compression: instead of the model's own.
            padding_side: of the result.
            answers: bool [B, T], tokens of given answers, which do not vote; None takes those that have a label.

        Returns:
            embeddings [B, L, D], zeros on padding, and their layout.
        """
        compression = compression or self.compression
        check_padding_mask(attention_mask, *input_ids.shape)
        check_shapes(input_ids, attention_mask=attention_mask, labels=labels, query_mask=query_mask)
        host_ids, host_mask = input_ids.cpu(), _host(attention_mask)
        crops, used = _match_images(host_ids, host_mask, *image_tensors(images))
        needed = [crops[index] for index in used]
        if crops and not needed and not self.training:
            _say_unseen()
        queries = compression.t2v.queries if compression.t2v else "last"
        if needed and queries == "salient" and query_mask is None:
            _say_without_query_mask()
        per_crop = self.visual_tokens_per_image(compression) if needed else 0
        if needed:
            compression.check_made_for(self.config.model_type, self.config.num_hidden_layers)
        plan = plan_splice(
            host_ids,
            host_mask,
            [per_crop * len(crop) for crop in needed],
            labels=_host(labels),
            answers=_host(answers),
            query_mask=_host(query_mask),
            queries=queries,
            padding_side=padding_side,
            max_length=self.config.tokenizer_model_max_length if labels is not None else None,
        )
        plan = plan.to(input_ids.device)
        features = self._features(crops, needed, compression.v2v)
        return self._splice(input_ids, features, plan, seen=bool(needed)), plan.layout

    def _splice(self, input_ids: Tensor, features: Tensor | None, plan: SplicePlan, seen: bool) -> Tensor:
        """Embeddings [B, L, D] of text [B, T] and image features [crops, N, D]; unseen features count nothing."""
        text = self.get_model().embed_tokens(input_ids.clamp(min=0))
        embeddings = splice_embeddings(text, features.flatten(0, 1) if features is not None and seen else None, plan)
        if features is not None and not seen:
            embeddings = embeddings + (0 * features).sum()
        return embeddings

    def _features(self, crops: list[Tensor], needed: list[Tensor], v2v: V2VConfig | None) -> Tensor | None:
        """Encode what is needed, [crops, N, D]; None where nothing is.

        A training batch without images still runs tower and projector once: data-parallel ranks gather partitioned
        weights together, so one that holds only text must take part.
        """
        if not needed and not (crops and (self.training or ranks_must_agree())):
            return None
        pixels = torch.cat(needed) if needed else crops[0][:1]
        return self.encode_images(pixels.to(self._tower().device), v2v)

    def _tower(self) -> CLIPVisionTower:
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
        tokenizer.add_tokens(added, special_tokens=True)
        old = self.config.vocab_size
        rows = max([old, *(tokenizer.convert_tokens_to_ids(token) + 1 for token in added)])
        if rows == old:
            return
        self.resize_token_embeddings(rows, mean_resizing=False)
        for embedding in (self.get_input_embeddings(), self.get_output_embeddings()):
            with torch.no_grad(), gathered([embedding.weight], changed=True):
                embedding.weight[old:] = embedding.weight[:old].mean(dim=0)


def _match_images(
    input_ids: Tensor, attention_mask: Tensor | None, images: list[Tensor] | None, of_rows: list[int] | None = None
) -> tuple[list[Tensor], list[int]]:
    """All images as crops [crops, 3, height, width], and which of them the placeholders stand for.

    `of_rows` says how many images each row has, where they were given row by row.

    Raises:
        ValueError: if images and placeholders do not fit each other.
    """
    crops = [] if images is None else [image if image.dim() == 4 else image[None] for image in images]
    is_image = input_ids == IMAGE_TOKEN_INDEX
    if attention_mask is not None:
        is_image &= attention_mask.bool()
    per_row = is_image.sum(dim=1).tolist()
    placeholders = sum(per_row)
    if of_rows is not None:
        return crops, _used_of_rows(per_row, of_rows)
    if placeholders == 0:
        return crops, []
    if len(crops) == placeholders:
        return crops, list(range(placeholders))
    if len(crops) == len(per_row) and max(per_row) <= 1:
        return crops, [row for row, count in enumerate(per_row) if count]
    raise ValueError(
        f"The prompts hold {placeholders} image placeholders in {len(per_row)} rows, but {len(crops)} images were "
        "given; give one image for each placeholder, in reading order."
    )


def _used_of_rows(per_row: list[int], of_rows: list[int]) -> list[int]:
    """Which images placeholders stand for, where images come row by row; one of a row without any is a dummy."""
    if len(of_rows) != len(per_row):
        raise ValueError(
            f"images holds lists for {len(of_rows)} rows, but {len(per_row)} prompts were given; give one each."
        )
    used: list[int] = []
    first = 0
    for row, (wanted, given) in enumerate(zip(per_row, of_rows, strict=True)):
        if wanted != given and not (wanted == 0 and given == 1):
            raise ValueError(
                f"The prompt of row {row} holds {wanted} image placeholders, but images[{row}] holds {given} images; "
                "give one image for each placeholder, in reading order."
            )
        used += range(first, first + wanted)
        first += given
    return used


def _host(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


@functools.cache
def _say_unseen() -> None:
    logger.warning("Images were given, but no prompt holds an <image>: nobody will see them.")


@functools.cache
def _say_without_query_mask() -> None:
    logger.warning(
        "t2v.queries is 'salient', but no query_mask says which tokens are: the last one votes alone. Make the prompt "
        "with llava.data.tokenization.encode_prompt and pass its query_mask."
    )


def load_projector(projector: nn.Module, path: str) -> None:
    """Read `mm_projector.bin` (or a safetensors file) into a projector.

    Raises:
        ValueError: if a weight is missing, unknown or of another shape; names it.
    """
    held = read_state_dict(path)
    weights = {name.split("mm_projector.", 1)[1]: held[name] for name in held if "mm_projector." in name}
    if len(weights) < len(held):
        logger.warning("%s holds %d weights beside the projector's; they are not used.", path, len(held) - len(weights))
    own = dict(projector.named_parameters())
    for name in sorted(set(own) ^ set(weights)):
        where = "is missing from" if name in own else "is in"
        raise ValueError(
            f"Projector weight {name!r} {where} {path}, which does not fit mm_projector_type with "
            f"weights {sorted(own)}; check --mm_projector_type."
        )
    for name, tensor in weights.items():
        if tuple(tensor.shape) != whole_shape(own[name]):
            raise ValueError(
                f"Projector weight {name!r} in {path} has shape {tuple(tensor.shape)}, but the model needs "
                f"{whole_shape(own[name])}; the file belongs to another tower or language model."
            )
    with gathered(own.values(), changed=True):
        projector.load_state_dict(weights)
    logger.info("Read the projector from %s (%d weights).", path, len(weights))
