"""What every compressed model of transformers has in common; an architecture adds how its images become tokens.

Shapes: B rows, T positions as the processor made them, L positions after splicing, L' after the last drop, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils.output_capturing import capture_outputs

from llava.compression.config import CompressionConfig, T2VConfig
from llava.compression.layout import TokenLayout
from llava.model.accepted_inputs import (
    check_cache,
    refuse_soft_prompts_of_peft,
    separated,
    stands_apart,
    without_packing,
)
from llava.model.behind_cache import check_compression_behind_cache
from llava.model.cache_name import CACHE, as_named, named
from llava.model.call_checks import (
    asks_nothing,
    check_call,
    check_one_prompt,
    check_prompt,
    guard_inner_model,
    text_alone,
)
from llava.model.columns import given_answer, labels_of
from llava.model.finite import require_finite_model
from llava.model.placeholders import VisualSpan, contract
from llava.model.prefill import Prefill, at_stock_positions
from llava.model.results import LlavaModelOutput, Wanted, with_head
from llava.model.shared_copy import as_kind, shared_copy
from llava.model.splice import check_shapes, plan_splice, splice_embeddings, warn_without_answers
from llava.model.staged_cache import StagedCache
from llava.model.staged_decoder import continue_stages, run_stages
from llava.model.staged_generation import StagedGeneration, is_filled
from llava.model.stock_forward import OWN_INPUTS


class CompressedModel(StagedGeneration):
    """Stands before a class of transformers among the bases. A subclass says, in one file:

    - `stock`: the class of transformers; `forward = forward_like(stock)`;
    - `visual_inputs`: the names among its inputs that describe images and videos;
    - `visual_spans`: from those to visual tokens;
    - where they differ from LLaVA's: `decoder`, `decoders`, `fitted`, `tower_tokens`, `rotary_positions`.
    """

    stock: ClassVar[Any]
    visual_inputs: ClassVar[tuple[str, ...]]
    decoders: ClassVar[tuple[str, ...]] = (
        "LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "Qwen2_5_VLTextModel",
    )  # fmt: skip
    """Classes of language models whose layers are Llama's in all that the staged decoder touches."""
    model: Any
    lm_head: Any
    training: bool
    get_input_embeddings: Any

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """Encode images and videos, with V2V if configured.

        Args:
            compression: what to do.
            inputs: of `visual_inputs`; any may be None.

        Returns:
            for each placeholder's token id, its spans in reading order.
        """
        raise NotImplementedError

    def rotary_positions(
        self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any]
    ) -> Tensor | None:
        """Positions [A, B, T] that the stock model gives the uncompressed prompt; None where they are 0, 1, 2, ..."""
        return None

    position_axes: ClassVar[tuple[int, ...]] = ()
    """How many axes positions may have in front of [B, T]."""

    def stands_apart(self, inputs: Mapping[str, Any], caching: bool) -> bool:
        """Whether a prompt packs several sequences into a row, or has a 4-D mask.

        Args:
            inputs: of the stock model, by name.
            caching: whether a cache is asked for; without one, transformers takes any jump for a border.
        """
        return stands_apart(inputs.get("position_ids"), inputs.get("attention_mask"), caching)

    def separating_positions(self, position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The positions by which the stock model keeps packed sequences apart, without a mask."""
        return separated(position_ids, attention_mask)

    def check_tower(self) -> None:
        """Raise ValueError for a vision tower that V2V cannot work with."""

    def fitted(self, compression: CompressionConfig) -> CompressionConfig:
        """The nearest configuration that makes sense for the architecture."""
        return compression

    def tower_tokens(self) -> int | None:
        """Tokens that V2V finds for each image, CLS included; None where that depends on the image."""
        return None

    @property
    def decoder(self) -> Any:
        """The language model without head."""
        return self.model.language_model

    @property
    def compression(self) -> CompressionConfig:
        """What `config.json` says under "compression"."""
        return CompressionConfig.resolve(getattr(self.config, "compression", None))

    def set_compression(self, compression: CompressionConfig | str | Mapping[str, Any] | None) -> None:
        """Make a configuration, preset or YAML file the model's own; it is saved with the checkpoint.

        Raises:
            ValueError: if it does not fit the tower or the depth of the language model.
        """
        self.config.compression = self._checked(compression).to_dict()

    def _checked(self, compression: CompressionConfig | str | Mapping[str, Any] | None) -> CompressionConfig:
        asked = CompressionConfig.resolve(compression)
        resolved = self.fitted(asked)
        if resolved != CompressionConfig():
            self._check_decoder()
        if resolved.v2v is not None:
            self.check_tower()
            tokens = self.tower_tokens()
            if tokens is not None:
                resolved.v2v.token_count(tokens)
        if resolved.t2v is not None:
            resolved.t2v.check_depth(len(self.decoder.layers))
        asked.check_made_for(self.config.model_type, len(self.decoder.layers))
        return resolved

    def _check_decoder(self) -> None:
        """Raise ValueError for a language model that the staged decoder would run wrongly."""
        if type(self.decoder).__name__ not in self.decoders:
            raise ValueError(
                f"The language model is a {type(self.decoder).__name__}; accepted are {', '.join(self.decoders)}. An "
                "adapter whose layers are like Llama's may name another in `decoders`."
            )
        StagedCache(self.decoder.config)  # refuses sliding windows

    @classmethod
    def of(cls, model: Any, compression: CompressionConfig | str | Mapping[str, Any] | None) -> Any:
        """A compressed model around the weights of a stock one; see `llava.compress`."""
        require_finite_model(model, getattr(model, "name_or_path", "") or type(model).__name__)
        twin = shared_copy(model, cls)
        guard_inner_model(twin)
        twin.set_compression(getattr(model.config, "compression", None) if compression is None else compression)
        return twin

    @classmethod
    def from_pretrained(cls, *args: Any, compression: Any = None, **kwargs: Any) -> Any:
        """As the class of transformers, with the compression saved in `config.json` unless another is given."""
        loaded = cls.stock.from_pretrained(*args, **kwargs)
        if isinstance(loaded, tuple):
            return cls.of(loaded[0], compression), *loaded[1:]
        return cls.of(loaded, compression)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As the class of transformers, which can open the directory; `config.json` carries the compression."""
        as_kind(self, self.stock).save_pretrained(*args, **kwargs)

    def staged_forward(self, inputs: dict[str, Any], more: dict[str, Any]) -> Any:
        """Forward under a compression, on inputs by name: those of the stock signature, and what else was given."""
        own = {name: more.pop(name, None) for name in OWN_INPUTS}
        compression = self.compression if own["compression"] is None else self._checked(own["compression"])
        apart = check_call(self, inputs, more, own["prefill"])
        cache, given, shift_labels = inputs.get(CACHE), inputs | more, more.get("shift_labels")
        wanted = Wanted.of(
            inputs.get("labels"), shift_labels, given.get("num_items_in_batch"), own["return_logits"],
            given.get("logits_to_keep"), self.training, compression.t2v.layers if compression.t2v else (),
            layouts=bool(own["output_layouts"]),
        )  # fmt: skip
        if apart:
            wanted.check(tuple(check_one_prompt(self, inputs).shape[:2]))
            output = self.stock.forward(self, **text_alone(self, inputs, more))
            return output if wanted.logits else replace(output, logits=None)
        more = {name: value for name, value in without_packing(more).items() if name != "shift_labels"}
        if cache is not None and is_filled(cache):
            check_compression_behind_cache(cache, None if own["compression"] is None else compression, self.compression)
            new, mask = self._new_text(inputs), inputs.get("attention_mask")
            cache.expect(None if mask is None else mask[:, -new.shape[1] :])
            outputs = _continue(self.decoder, new, cache, **_of_layers(more))
            width = None
        else:
            if shift_labels is not None and inputs.get("input_ids") is not None:
                wanted = wanted.without_visual(self._is_placeholder(inputs["input_ids"]))
            prefill = own["prefill"] or self.prefill(inputs | own | {"shift_labels": shift_labels}, compression)
            caching = given.get("use_cache")
            if caching is None:
                caching = self.decoder.config.use_cache and not wanted.loss and not self.training
            if caching and cache is None:
                cache = StagedCache(self.decoder.config)
            cache = cache if caching else None
            if cache is not None:
                cache.filled_under = compression
            outputs = _run(self.decoder, prefill.embeddings, prefill.layout, compression.t2v, cache, **_of_layers(more))
            width = prefill.width
        return with_head(self.lm_head, outputs, wanted, width)

    def prefill(
        self, inputs: Mapping[str, Any], compression: CompressionConfig, padding_side: str | None = None
    ) -> Prefill:
        """Embed the text, encode what is seen, and bring both into rows.

        Args:
            inputs: of the stock model, by name, `query_mask` and `shift_labels`.
            compression: what to do.
            padding_side: of the result; None pads as the input is padded.

        Raises:
            ValueError: if there is no `input_ids`, the placeholders do not fit the images, or another tensor has
                another shape than the ids.
        """
        check_prompt(self, inputs, generating=padding_side is not None)
        ids: Any = inputs.get("input_ids")
        mask, embeds = inputs.get("attention_mask"), inputs.get("inputs_embeds")
        visual = {name: inputs.get(name) for name in self.visual_inputs}
        if embeds is not None:
            layout = self._layout_of_text(embeds, mask, inputs)
            return Prefill(embeds, layout, embeds.shape[1], of_embeddings=True)
        labels, answers = self._labels_and_answers(inputs, compression)
        check_shapes(ids, attention_mask=mask, labels=labels, query_mask=inputs.get("query_mask"))
        if "mm_token_type_ids" in visual:
            check_shapes(ids, mm_token_type_ids=visual["mm_token_type_ids"])
        text = contract(ids, mask, self.visual_spans(compression, visual))
        plan = plan_splice(
            text.input_ids,
            text.attention_mask,
            [len(span.features) for span in text.spans],
            labels=text.labels(labels),
            answers=text.take(answers),
            query_mask=text.take(inputs.get("query_mask")),
            queries=compression.t2v.queries if compression.t2v else "last",
            padding_side=padding_side or _padding_side(mask),
        )
        positions = self.rotary_positions(ids, mask, inputs)
        given = inputs.get("position_ids")
        if positions is None and given is not None and not text.spans:
            positions = given.expand(ids.shape)[None]
        if positions is not None:
            plan = replace(plan, layout=at_stock_positions(plan.layout, plan.source, positions, text, mask))
        plan = replace(plan, layout=replace(plan.layout, columns=text.input_columns(plan.source, plan.layout.valid)))
        plan = plan.to(ids.device)
        embeddings = self.get_input_embeddings()(text.input_ids.clamp(min=0).to(ids.device))
        features = torch.cat([span.features.to(embeddings) for span in text.spans]) if text.spans else None
        return Prefill(splice_embeddings(embeddings, features, plan), plan.layout, ids.shape[1])

    def _labels_and_answers(
        self, inputs: Mapping[str, Any], compression: CompressionConfig
    ) -> tuple[Tensor | None, Tensor | None]:
        """Labels int64 [B, T], made of `shift_labels` where given, and which tokens are an answer, bool [B, T]."""
        shift_labels, labels = inputs.get("shift_labels"), inputs.get("labels")
        if shift_labels is not None:
            return labels_of(shift_labels), None
        if labels is not None:
            return labels, None
        ids = inputs["input_ids"]
        placeholders = self._is_placeholder(ids)
        answers = given_answer(ids, inputs.get("attention_mask"), placeholders, inputs.get("logits_to_keep"))
        silent = answers is None and inputs.get("query_mask") is None
        if silent and compression.t2v and self.training and torch.is_grad_enabled():
            warn_without_answers()
        return None, answers

    def _is_placeholder(self, input_ids: Tensor) -> Tensor:
        """bool [B, T]: where images and videos go."""
        tokens = [getattr(self.config, name, None) for name in ("image_token_id", "video_token_id")]
        known = torch.tensor([token for token in tokens if token is not None], device=input_ids.device)
        return torch.isin(input_ids, known)

    def _layout_of_text(self, embeds: Tensor, mask: Tensor | None, inputs: Mapping[str, Any]) -> TokenLayout:
        """Layout of embeddings [B, T, D]; positions on several axes are theirs."""
        layout = TokenLayout.of_text(torch.ones(embeds.shape[:2], device=embeds.device) if mask is None else mask)
        given = inputs.get("position_ids")
        return layout if given is None else layout.at_positions(given if given.dim() == 2 else given[-3:])

    def _new_text(self, inputs: Mapping[str, Any]) -> Tensor:
        """Embeddings of tokens behind a filled cache."""
        if any(inputs.get(name) is not None for name in self.visual_inputs if name.startswith("pixel")):
            raise ValueError("Images cannot be added behind a filled cache; give the whole conversation anew.")
        embeds = inputs.get("inputs_embeds")
        return self.get_input_embeddings()(inputs["input_ids"]) if embeds is None else embeds

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict[str, Any]:
        """Encode the prompt once, before its rows are repeated for beams, and hand it on ready for the decoder.

        A cache is always used, as transformers does for prompts that are embeddings: a whole sequence that is run again
        with its answer could choose other visual tokens.
        """
        given = model_kwargs.get("compression")
        compression = self.compression if given is None else self._checked(given)
        if compression == CompressionConfig():
            return self.stock._maybe_prepare_encoder_kwargs_for_generation(
                self, inputs_tensor, model_kwargs, model_input_name, generation_config
            )
        generation_config.use_cache = True
        check_cache(as_named(model_kwargs).get(CACHE))
        if is_filled(as_named(model_kwargs).get(CACHE)):
            raise ValueError(
                "past_key_values already holds tokens; generate starts from the whole prompt, so leave it out."
            )
        refuse_soft_prompts_of_peft(self)
        prompt = model_kwargs | {model_input_name or "input_ids": inputs_tensor}
        ready = {"prefill": self.prefill(prompt, compression, padding_side="left"), "compression": compression}
        used = (*self.visual_inputs, "query_mask", "position_ids")
        return {name: value for name, value in model_kwargs.items() if name not in used} | ready

    def is_staged(self, compression: Any = None) -> bool:
        """Whether a call, with this compression instead of the model's own, compresses anything."""
        return not asks_nothing(getattr(self.config, "compression", None) if compression is None else compression)

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Any:
        """None under a compression, which numbers its tokens itself: what a caller gives is told from what is made."""
        if not self.is_staged(model_kwargs.get("compression")):
            return self.stock._prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs)
        return None

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        if model_kwargs.get("prefill") is None:
            self.stock._prepare_cache_for_generation(self, generation_config, model_kwargs, *args)
        else:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)


@capture_outputs
def _run(
    decoder: Any,
    embeddings: Tensor,
    layout: TokenLayout,
    t2v: T2VConfig | None,
    cache: StagedCache | None,
    **kwargs: Any,
) -> LlavaModelOutput:
    output = run_stages(decoder, embeddings, layout, t2v, cache, **kwargs)
    return LlavaModelOutput(
        last_hidden_state=output.hidden_states, layouts=output.layouts, scores=output.scores, **named(cache)
    )


@capture_outputs
def _continue(decoder: Any, embeddings: Tensor, cache: StagedCache, **kwargs: Any) -> LlavaModelOutput:
    return LlavaModelOutput(last_hidden_state=continue_stages(decoder, embeddings, cache, **kwargs), **named(cache))


def _of_layers(more: Mapping[str, Any]) -> dict[str, Any]:
    """What the stock model would hand to its decoder layers."""
    return {name: value for name, value in more.items() if name not in ("num_items_in_batch", "use_cache")}


def _padding_side(attention_mask: Tensor | None) -> str:
    """Left if any row starts with padding."""
    return "left" if attention_mask is not None and bool((attention_mask[:, 0] == 0).any()) else "right"


def adapters(kind: type[CompressedModel] = CompressedModel) -> Sequence[type[CompressedModel]]:
    """All architectures that can be compressed: those of this package that were imported, and anybody's own."""
    found: list[type[CompressedModel]] = []
    for child in kind.__subclasses__():
        found += [child, *adapters(child)]
    return found
