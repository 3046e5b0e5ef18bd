"""LLaVA on Llama: transformers' model with a vision tower, and a forward that runs the decoder stage by stage.

Shapes: B rows, T positions before splicing, L after it, L' after the last drop, D width, S supervised positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    LlamaForCausalLM,
    LlamaModel,
    TextStreamer,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from llava.compression.config import CompressionConfig, T2VConfig
from llava.compression.layout import TokenLayout
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.accepted_inputs import (
    check_cache,
    check_counting,
    check_no_media,
    check_padding_mask,
    check_position_shape,
    check_tokens,
    is_attention_matrix,
    refuse_soft_prompts_of_peft,
    stands_apart,
    without_packing,
)
from llava.model.behind_cache import check_behind_cache, check_compression_behind_cache
from llava.model.cache_name import CACHE, as_named, cache_of, named, takes_either_name
from llava.model.columns import given_answer
from llava.model.generation_options import REFUSED, REFUSED_ON_EMBEDDINGS, check_chosen_logits, check_options
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.llava_config import LlavaConfig
from llava.model.results import LlavaCausalLMOutput, LlavaModelOutput, Wanted, with_head
from llava.model.splice import check_shapes, warn_without_answers
from llava.model.staged_cache import StagedCache
from llava.model.staged_decoder import continue_stages, run_stages
from llava.model.staged_generation import StagedGeneration, is_filled
from llava.model.text_inputs import check_forward, refuse_placeholders, run_apart, with_other_side, within_length


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Llama's decoder with a vision tower and a projector beside it."""

    config_class = LlavaConfig
    embed_tokens: Any

    def __init__(self, config: LlavaConfig) -> None:
        LlamaModel.__init__(self, config)
        self.embed_tokens.register_forward_pre_hook(refuse_placeholders)
        self.build_vision_modules()

    @takes_either_name
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StagedCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        layout: TokenLayout | None = None,
        t2v: T2VConfig | None = None,
        apart: bool | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutput:
        """Run the decoder on embeddings [B, L, D] (or text ids [B, L]); with a filled cache, continue it.

        Args:
            layout: of the L positions; None takes all of them for text, padded as `attention_mask` says.
            attention_mask: of text without a layout [B, L], or of the new tokens behind a filled cache.
            position_ids: of text without a layout.
            t2v: when to drop visual tokens.
            apart: whether text without a layout needs an attention of its own (`run_apart`); None finds out.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        check_no_media(kwargs, "call the model with its head, whose forward takes images")
        check_cache(past_key_values)
        embeddings: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is not None and is_filled(past_key_values):
            check_behind_cache(past_key_values, embeddings.shape[:2], attention_mask, position_ids)
            past_key_values.expect(None if attention_mask is None else attention_mask[:, -embeddings.shape[1] :])
            hidden_states = continue_stages(self, embeddings, past_key_values, **kwargs)
            return LlavaModelOutput(last_hidden_state=hidden_states, **named(past_key_values))
        if layout is None:
            layout = _text_layout(embeddings, attention_mask, position_ids)
            if stands_apart(position_ids, attention_mask, bool(use_cache)) if apart is None else apart:
                output = run_apart(self, embeddings, attention_mask, position_ids, **kwargs)
                return LlavaModelOutput(last_hidden_state=output.last_hidden_state, layouts=(layout,), scores=())
        kwargs = without_packing(kwargs)
        if past_key_values is None and use_cache:
            past_key_values = StagedCache(self.config)
        output = run_stages(self, embeddings, layout, t2v, past_key_values if use_cache else None, **kwargs)
        return LlavaModelOutput(
            last_hidden_state=output.hidden_states,
            layouts=output.layouts,
            scores=output.scores,
            **named(past_key_values),
        )


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, StagedGeneration, LlamaForCausalLM):
    """LLaVA with V2V and T2V in training, prefill and decoding; without compression it is LLaVA, token for token."""

    config_class = LlavaConfig
    refused_options: ClassVar[Mapping[str, str]] = {**REFUSED, **REFUSED_ON_EMBEDDINGS}
    model: Any
    lm_head: Any
    post_init: Any
    device: torch.device

    def __init__(self, config: LlavaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers, with the image processor beside the weights, so that the directory stands alone."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        tower = self.get_vision_tower()
        if tower is not None and is_main_process:
            tower.image_processor.save_pretrained(save_directory)

    @takes_either_name
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        images: Any = None,
        image_sizes: Any = None,
        query_mask: Tensor | None = None,
        layout: TokenLayout | None = None,
        compression: CompressionConfig | str | Mapping[str, Any] | None = None,
        return_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutput:
        """From token ids and images to loss and logits.

        Args:
            input_ids: int64 [B, T], `IMAGE_TOKEN_INDEX` where images go. With a filled cache: new text tokens.
            attention_mask: [B, T], 0 on padding of either side; with a filled cache that of the new tokens (of a
                longer mask the last columns); without one every new token counts.
            position_ids: [B, T] of text without images; with images they are made while splicing. Where they start anew
                within a row, sequences are packed and do not see each other; for text alone, and without a cache.
            labels: int64 [B, T], -100 where there is no target.
            images, query_mask: see `prepare_multimodal_inputs`.
            image_sizes: accepted for LLaVA's sake; sizes do not matter as long as images are not cut into tiles.
            layout: of `inputs_embeds`, if those are given and hold visual tokens.
            compression: instead of the model's own: an object, preset's name, YAML file or mapping.
            return_logits: None leaves them out where labels are given in training.
            logits_to_keep: as in transformers; logits of the last so many columns, 0 for all. Without labels or query
                mask, who keeps the last K + 1 scores the K last tokens: they do not vote on visual tokens.
            num_items_in_batch: targets of the whole (accumulated) batch, to divide the summed loss by.
            shift_labels: int64 [B, T], what each column is to predict; taken for the loss instead of `labels`.

        Raises:
            ValueError: if the inputs do not fit each other; see `llava.model.text_inputs.check_forward`.
        """
        asked = None if compression is None else CompressionConfig.resolve(compression)
        compression = self.compression if asked is None else asked
        shown, apart = check_forward(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values, images, layout, kwargs,
            use_cache, self.config.use_cache,
        )  # fmt: skip
        cuts = compression.t2v.layers if compression.t2v else ()
        wanted = Wanted.of(labels, shift_labels, num_items_in_batch, return_logits, logits_to_keep, self.training, cuts)
        if use_cache is None:
            use_cache = self.config.use_cache and not wanted.loss and not self.training and not apart
        filled: Any = past_key_values if is_filled(past_key_values) else None
        if filled is not None:
            check_compression_behind_cache(filled, asked, self.compression)
        if filled is not None and wanted.loss:
            raise ValueError("There is no loss for tokens behind a filled cache; give the whole sequence with labels.")
        width = None
        if layout is None and not apart:
            width = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]  # type: ignore[union-attr]
        if input_ids is not None and not is_filled(past_key_values):
            check_shapes(input_ids, query_mask=query_mask)
        if shown and input_ids is not None:
            is_visual = input_ids == IMAGE_TOKEN_INDEX
            wanted = wanted.without_visual(is_visual)
            answers = None
            if not wanted.loss:
                answers = given_answer(input_ids, attention_mask, is_visual, wanted.logits_to_keep)
                silent = answers is None and query_mask is None
                if silent and compression.t2v and self.training and torch.is_grad_enabled():
                    warn_without_answers()
            inputs_embeds, layout = self.prepare_multimodal_inputs(
                input_ids, attention_mask, wanted.token_labels(), images, query_mask, compression, answers=answers
            )
            input_ids = None
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            layout=layout,
            t2v=compression.t2v,
            apart=apart,
            **kwargs,
        )
        if filled is None and cache_of(outputs) is not None:
            cache_of(outputs).filled_under = compression
        return with_head(self.lm_head, outputs, wanted, width)

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
            images, query_mask: see `prepare_multimodal_inputs`; of a whole prompt only.
            image_sizes: accepted for LLaVA's sake.
            attention_mask: [B, T], 0 on padding of either side; behind a filled cache on padding in front.
            compression: instead of the model's own: an object, preset's name, YAML file or mapping. Of a whole prompt
                only.
            kwargs: of transformers' `generate`, such as `streamer`, which gets new ids only.

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
        check_options(self.refused_options, kwargs, config, self.generation_config)
        check_chosen_logits(kwargs.get("return_logits"))
        check_no_media(kwargs, "give the pixels as images")
        _check_streamer(kwargs.get("streamer"), len(inputs))
        kwargs = as_named(kwargs)
        cache: Any = kwargs.get(CACHE)
        check_cache(cache)
        positions = kwargs.pop("position_ids", None)
        if is_filled(cache):
            _check_new_ids(inputs, images)
            check_behind_cache(cache, inputs.shape, attention_mask, positions)
            check_compression_behind_cache(
                cache, None if compression is None else CompressionConfig.resolve(compression), self.compression
            )
            _check_last_column(attention_mask)
            embeddings = self.get_input_embeddings()(inputs)
            mask = None if attention_mask is None else attention_mask.to(self.device)
            kwargs = within_length(kwargs, cache.get_seq_length() + inputs.shape[1], self.generation_config)
            return super().generate(inputs_embeds=embeddings, attention_mask=mask, **kwargs)
        check_padding_mask(attention_mask, *inputs.shape)
        check_position_shape(positions, *inputs.shape)
        check_counting(positions, attention_mask)
        chosen = self.compression if compression is None else CompressionConfig.resolve(compression)
        embeddings, layout = self.prepare_multimodal_inputs(
            inputs, attention_mask, None, images, query_mask, chosen, padding_side="left"
        )
        kwargs = within_length(kwargs, layout.valid.shape[1], self.generation_config)
        kwargs = with_other_side(kwargs, inputs, attention_mask, self.generation_config)
        return super().generate(
            inputs_embeds=embeddings, attention_mask=layout.valid.long(), layout=layout, compression=chosen, **kwargs
        )


def _check_new_ids(new_ids: Tensor, images: Any) -> None:
    """Raise ValueError for images behind a filled cache."""
    if images is not None or bool((new_ids == IMAGE_TOKEN_INDEX).any()):
        raise ValueError(
            "Images cannot be added behind a filled cache, whose layers have chosen their visual tokens; give the "
            "whole conversation without past_key_values."
        )


def _check_last_column(attention_mask: Tensor | None) -> None:
    """Raise ValueError for new tokens behind a filled cache that are padded on the right."""
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "The new tokens behind a filled cache are padded on the right, but each answer starts at the last column; "
            "pad them on the left."
        )


def _check_streamer(streamer: Any, rows: int) -> None:
    """Say before anything is computed what transformers would say after the images are encoded.

    Raises:
        ValueError: if a batch is to be streamed as text.
    """
    if rows > 1 and isinstance(streamer, TextStreamer):
        raise ValueError(
            f"A {type(streamer).__name__} streams one answer, but {rows} prompts were given; ask one at a time, or "
            "leave streamer out."
        )


def _text_layout(embeddings: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> TokenLayout:
    batch, length = embeddings.shape[:2]
    if attention_mask is None or is_attention_matrix(attention_mask):
        layout = TokenLayout.of_full_text(batch, length, embeddings.device)
    else:
        layout = TokenLayout.of_text(attention_mask)
    return layout if position_ids is None else layout.at_positions(position_ids)


AutoModel.register(LlavaConfig, LlavaLlamaModel)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM)
