"""LLaVA on Llama, the family of LLaVA's own checkpoints: one `<image>` for an image, a tower and a projector beside it.

Shapes: B rows, T columns of the prompt, L positions after splicing, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from llava.common.anyres import is_anyres
from llava.compression.config import CompressionConfig
from llava.compression.layout import TokenLayout
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.accepted_inputs import (
    check_cache,
    check_no_media,
    check_tokens,
    refuse_soft_prompts_of_peft,
)
from llava.model.behind_cache import check_behind_cache, check_compression_behind_cache
from llava.model.cache_name import as_named, takes_either_name
from llava.model.call_checks import BYPASS, check_new_text, check_prompt
from llava.model.crops import CropPlanSettings, crop_merging, encode_crops
from llava.model.embedded_prompts import check_streamer, refuse_placeholders, with_other_side, within_length
from llava.model.generation_options import REFUSED, REFUSED_ON_EMBEDDINGS
from llava.model.image_inputs import ShownImages, shown_images
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.llava_config import LlavaConfig
from llava.model.mixed_media import MixedPlanSettings, ShownMedia, media_spans, shown_media
from llava.model.placeholders import VisualSpan
from llava.model.prefill import Prefill
from llava.model.splice import PlanSettings
from llava.model.staged_cache import is_filled
from llava.model.staged_decoder import continue_stages
from llava.model.staged_model import StagedModel, queries_of
from llava.model.stock_forward import forward_like
from llava.model.varlen_attention import let_pack


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Llama's decoder with a vision tower and a projector beside it."""

    config_class = LlavaConfig
    embed_tokens: Any

    def __init__(self, config: LlavaConfig) -> None:
        LlamaModel.__init__(self, config)
        self.embed_tokens.register_forward_pre_hook(refuse_placeholders)
        self.build_vision_modules()

    @takes_either_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Text as Llama runs it; behind a filled `StagedCache`, each stage goes on from where it stands."""
        check_no_media(kwargs, "call the model with its head, whose forward takes images")
        kwargs.pop(BYPASS, None)
        check_cache(past_key_values)
        if is_filled(past_key_values):
            new: Any = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            check_behind_cache(past_key_values, new.shape[:2], attention_mask, position_ids)
            return continue_stages(self, new, past_key_values, attention_mask, **kwargs)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **as_named({"past_key_values": past_key_values}),
            **kwargs,
        )


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, StagedModel, LlamaForCausalLM):
    """LLaVA with V2V and T2V in training, prefill and decoding; without compression it is LLaVA, token for token.

    `forward` takes, beside what Llama's takes and what `forward_like` adds: `images`, one for each placeholder in
    reading order, or one a row (those of rows without a placeholder are dummies), in any form that
    `llava.model.image_inputs.image_tensors` knows; and `image_sizes`, (width, height) of each before it was cut, which
    images that are cut need.
    """

    config_class = LlavaConfig
    stock = LlamaForCausalLM
    visual_inputs = ("images", "image_sizes")
    decoders = ("LlavaLlamaModel",)
    pixels_are = "give the pixels as images"
    returns_layouts = True
    returns_prompt = False
    takes_filled_cache = True
    refused_options: ClassVar[Mapping[str, str]] = {**REFUSED, **REFUSED_ON_EMBEDDINGS}
    model: Any
    lm_head: Any
    post_init: Any
    device: torch.device
    forward = forward_like(LlamaForCausalLM, "images", "image_sizes")

    def __init__(self, config: LlavaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        let_pack(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers, with the image processor beside the weights, so that the directory stands alone."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        for _, tower in self.named_towers() if is_main_process else ():
            tower.image_processor.save_pretrained(save_directory)

    @property
    def decoder(self) -> Any:
        """The language model without head."""
        return self.model

    def vision_towers(self) -> tuple[Any, ...]:
        """The tower of a LLaVA, the two of a Video-LLaVA, or none."""
        return tuple(tower for _, tower in self.named_towers())

    def projectors(self) -> tuple[nn.Module, ...]:
        """The projector, if there is one."""
        return () if self.model.mm_projector is None else (self.model.mm_projector,)

    def unused_modules(self) -> tuple[nn.Module, ...]:
        """What stands behind the selected layer of the tower."""
        return tuple(chain.from_iterable(tower.unused_modules() for tower in self.vision_towers()))

    def is_staged(self, compression: Any = None) -> bool:
        """Always: prompts are embedded here, and caches are made here, whatever is compressed."""
        return True

    def pixel_inputs(self) -> tuple[str, ...]:
        """Images, in any form."""
        return ("images",)

    def has_cls(self) -> bool:
        """As the tower says."""
        tower = self.get_vision_tower()
        return tower is None or tower.has_cls

    def tower_tokens(self) -> int | None:
        """Tokens of one image, CLS included where the tower has it; None without a tower."""
        tower = self.get_vision_tower()
        return None if tower is None else tower.num_patches + tower.has_cls

    def visual_tokens_per_image(self, compression: CompressionConfig | None = None) -> int:
        """Visual tokens that one image, or one crop of an image, brings into the language model."""
        return self.require_tower().tokens_per_image((compression or self.compression).v2v)

    def plan_settings(self, compression: CompressionConfig | None = None) -> PlanSettings:
        """As in every family; each image brings as many tokens, unless images are cut into crops."""
        chosen = compression or self.compression
        tower, frames = self.get_vision_tower(), self.get_video_tower()
        tokens = 0 if tower is None else self.visual_tokens_per_image(chosen)
        settings = tokens, queries_of(chosen), self.longest_prompt()
        if frames is not None:
            return MixedPlanSettings(*settings, frames.tokens_per_image(chosen.v2v))
        if tower is None or not is_anyres(self.config.image_aspect_ratio):
            return PlanSettings(*settings)
        return CropPlanSettings(*settings, crop_merging(self.config, tower), chosen.v2v is not None)

    def longest_prompt(self) -> int | None:
        """`model_max_length` of the training that made the model, or that it is in."""
        return self.config.tokenizer_model_max_length

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """One span an image, with all its crops; of an image that no prompt shows an empty one."""
        seen: ShownImages | ShownMedia | None = inputs["images"]
        if isinstance(seen, ShownMedia):
            return {IMAGE_TOKEN_INDEX: media_spans(self, seen, compression.v2v)}
        if seen is None or not seen.images:
            return {IMAGE_TOKEN_INDEX: []}
        found = encode_crops(self, seen.images, seen.sizes, compression.v2v, seen.stacked)
        return {IMAGE_TOKEN_INDEX: [VisualSpan(one, 1) if seen.shown else VisualSpan(one[:0], 0) for one in found]}

    def prefill(
        self, inputs: Mapping[str, Any], compression: CompressionConfig, padding_side: str | None = None
    ) -> Prefill:
        """As in every family; first, images are brought into one form and given to their placeholders."""
        shown: Any = None
        if inputs.get("inputs_embeds") is None:
            mask, images, plan = (inputs.get(name) for name in ("attention_mask", "images", "plan"))
            if self.config.sees_videos:
                towers: dict[str, Any] = {name.removesuffix("_tower"): tower for name, tower in self.named_towers()}
                shown = shown_media(inputs["input_ids"], mask, images, plan, self.training, towers)
            else:
                sizes = inputs.get("image_sizes")
                shown = shown_images(inputs["input_ids"], mask, images, plan, self.training, sizes)
        return super().prefill({**inputs, "images": shown}, compression, padding_side)

    def prepare_multimodal_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        images: Any = None,
        query_mask: Tensor | None = None,
        compression: CompressionConfig | str | Mapping[str, Any] | None = None,
        padding_side: str = "right",
        image_sizes: Any = None,
    ) -> tuple[Tensor, TokenLayout]:
        """Embed the text, encode the images and splice them in.

        Args:
            input_ids: int64 [B, T] with `IMAGE_TOKEN_INDEX` where images go.
            attention_mask: [B, T], 0 on padding of either side.
            labels: int64 [B, T], -100 where there is no target; what has one does not vote.
            images: as in `forward`.
            query_mask: int64 [B, T], see `llava.compression.salience.QueryRole`.
            compression: compression used instead of the model's own.
            padding_side: padding side of the result.
            image_sizes: as in `forward`.

        Returns:
            embeddings [B, L, D], zeros on padding, and their layout.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "images": images,
            "image_sizes": image_sizes,
            "query_mask": query_mask,
        }
        check_prompt(self, inputs, generating=True)
        chosen = self.compression if compression is None else self.checked(compression)
        prefill = self.prefill(inputs, chosen, padding_side)
        return prefill.embeddings, prefill.layout

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        images: Any = None,
        image_sizes: Any = None,
        attention_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        compression: CompressionConfig | str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer prompts; as transformers' `generate`, but returns only the new ids, as LLaVA does.

        With a filled `StagedCache` as `past_key_values` a conversation goes on: `inputs` are what the cache lacks,
        first of all the last token that was generated. They see the visual tokens that the first question left in
        each layer, and choose none anew.

        Args:
            inputs: int64 [B, T] (also accepted as `input_ids`), `IMAGE_TOKEN_INDEX` where images go.
            images: as in `forward`; of a whole prompt only.
            image_sizes: as in `forward`.
            attention_mask: [B, T], 0 on padding of either side; behind a filled cache on padding in front.
            query_mask: int64 [B, T], see `llava.compression.salience.QueryRole`; of a whole prompt only.
            compression: instead of the model's own: an object, preset's name, YAML file or mapping. Of a whole prompt
                only.
            kwargs: arguments of transformers' `generate`, such as `streamer`, which gets new ids only.

        Raises:
            ValueError: if the inputs do not fit each other or the cache.
        """
        given, config = kwargs.pop("input_ids", None), kwargs.get("generation_config")
        if (inputs is None) == (given is None) or kwargs.pop("inputs_embeds", None) is not None:
            raise ValueError("Give the prompt once, as token ids (inputs=); embeddings are made here.")
        inputs = given if inputs is None else inputs
        check_tokens("inputs", inputs)
        inputs = inputs.to(self.device)
        refuse_soft_prompts_of_peft(self)
        kwargs = as_named(kwargs)
        cache = self.check_generation(kwargs, config)
        check_no_media(kwargs, self.pixels_are)
        check_streamer(kwargs.get("streamer"), len(inputs))
        prompt = {
            "input_ids": inputs,
            "attention_mask": attention_mask,
            "position_ids": kwargs.pop("position_ids", None),
            "images": images,
            "image_sizes": image_sizes,
            "query_mask": query_mask,
        }
        chosen = None if compression is None else self.checked(compression)
        if is_filled(cache):
            check_new_text(self, prompt, {}, cache)
            check_compression_behind_cache(cache, chosen, self.compression)
            _check_last_column(attention_mask)
            embeddings = self.get_input_embeddings()(inputs)
            mask = None if attention_mask is None else attention_mask.to(self.device)
            kwargs = within_length(kwargs, cache.get_seq_length() + inputs.shape[1], self.generation_config)
            return super().generate(inputs_embeds=embeddings, attention_mask=mask, **kwargs)
        check_prompt(self, prompt, generating=True)
        chosen = self.compression if chosen is None else chosen
        ready = self.prefill(prompt, chosen, padding_side="left")
        kwargs = within_length(kwargs, ready.layout.valid.shape[1], self.generation_config)
        kwargs = with_other_side(kwargs, inputs, attention_mask, self.generation_config)
        return super().generate(
            inputs_embeds=ready.embeddings,
            attention_mask=ready.layout.valid.long(),
            prefill=dataclasses.replace(ready, width=None, of_embeddings=True),
            compression=chosen,
            **kwargs,
        )

    def _maybe_prepare_encoder_kwargs_for_generation(self, tensor: Tensor, given: dict[str, Any], *args: Any) -> Any:
        """Nothing: `generate` has prepared the prompt."""
        return given


def _check_last_column(attention_mask: Tensor | None) -> None:
    """Raise ValueError for new tokens behind a filled cache that are padded on the right."""
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "The new tokens behind a filled cache are padded on the right, but each answer starts at the last column; "
            "pad them on the left."
        )


AutoModel.register(LlavaConfig, LlavaLlamaModel)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM)
