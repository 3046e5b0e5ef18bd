"""The front: everything that models with both stages share, whatever family they are of.

A family (`llava/model/families/`) adds how its images become tokens. Shapes: B rows, T columns of the input, L
positions after splicing, L' after the last drop, S text tokens, A axes of positions, D width.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from llava.compression.config import CompressionConfig
from llava.model.accepted_inputs import check_cache, separated, stands_apart, without_packing
from llava.model.behind_cache import check_compression_behind_cache
from llava.model.cache_name import CACHE
from llava.model.call_checks import check_call, check_ids, labels_given, text_alone
from llava.model.columns import given_answer
from llava.model.experts import ASKED as ROUTERS
from llava.model.experts import RouterLoss, refuse_beside_padding
from llava.model.head_loss import SummedLoss, summed_cross_entropy
from llava.model.host_inputs import on_host, with_host_inputs
from llava.model.loss import Targets
from llava.model.packing import packing_of_call, packs, refuse_to_pack
from llava.model.parts import parts_named, weights_of
from llava.model.placeholders import VisualSpan, hidden_unless_shown
from llava.model.prefill import Prefill, at_stock_positions, of_embeddings, of_text, padding_side_of
from llava.model.query_roles import warn_without_answers, warn_without_query_mask
from llava.model.results import RequestedOutputs, with_head
from llava.model.splice import (
    PlanSettings,
    SplicePlan,
    at_slots,
    plan_splice,
    splice_added,
    splice_embeddings,
)
from llava.model.staged_cache import StagedCache, is_filled
from llava.model.staged_decoder import continue_stages, run_stages
from llava.model.staged_generation import StagedGeneration
from llava.model.stock_forward import OWN_INPUTS
from llava.model.varlen_attention import let_pack

logger = logging.getLogger(__name__)


class StagedModel(StagedGeneration):
    """A vision-language model whose decoder runs stage by stage. A family says:

    - `stock`: the class of transformers that it builds on; `forward = forward_like(stock)`;
    - `visual_inputs`: the names among its inputs that describe images and videos, those with pixels `pixel_inputs`;
    - `visual_spans`: from those to visual tokens, each image with its own count;
    - where they differ from LLaVA's: `decoder`, `decoders`, `vision_towers`, `projectors`, `unused_modules`, `has_cls`,
      `fitted`, `tower_tokens`, `rotary_positions`.
    """

    stock: ClassVar[Any]
    visual_inputs: ClassVar[tuple[str, ...]]
    decoders: ClassVar[tuple[str, ...]] = (
        "LlamaModel",
        "MistralModel",
        "Qwen2Model",
        "Qwen3Model",
        "Qwen2_5_VLTextModel",
        "Qwen3VLTextModel",
        "Qwen3VLMoeTextModel",
    )
    """Classes of language models whose layers are Llama's in all that the staged decoder touches."""
    crop_orders: ClassVar[tuple[str, ...]] = ("crops", "raster")
    """Values of `v2v.crop_order` that it knows; where no image is cut, all are the same."""
    position_axes: ClassVar[tuple[int, ...]] = ()
    """How many axes positions may have in front of [B, T]."""
    pixels_are: ClassVar[str] = "give what the model's own processor returns, as the processor names it"
    """What to do instead of giving pixels under a name that nothing reads."""
    returns_layouts: ClassVar[bool] = False
    """Whether outputs carry the layouts of the stages unless `output_layouts` says otherwise."""
    summed_loss: SummedLoss = staticmethod(summed_cross_entropy)
    """What computes the loss behind the head; `llava.model.liger` gives an instance another."""
    model: Any
    lm_head: Any
    training: bool
    get_input_embeddings: Any
    _require_grads_hooks: Any
    _parsed: tuple[Any, CompressionConfig] = (None, CompressionConfig())

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """Encode images and videos, with V2V if configured.

        Args:
            compression: what to do.
            inputs: arguments named in `visual_inputs`; any may be None.

        Returns:
            for each placeholder's token id, its spans in reading order.
        """
        raise NotImplementedError

    def pixel_inputs(self) -> tuple[str, ...]:
        """Which of `visual_inputs` hold pixels."""
        return tuple(name for name in self.visual_inputs if name.startswith("pixel"))

    def rotary_positions(
        self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any]
    ) -> Tensor | None:
        """Positions [A, B, T] that the stock model gives the uncompressed prompt; None where they are 0, 1, 2, ..."""
        return None

    def stands_apart(self, inputs: Mapping[str, Any], caching: bool) -> bool:
        """Whether a prompt packs several sequences into a row, or has a 4-D mask.

        Args:
            inputs: arguments of the stock model, by name.
            caching: whether a cache is asked for; without one, transformers takes any jump for a border.
        """
        return stands_apart(inputs.get("position_ids"), inputs.get("attention_mask"), caching)

    def separating_positions(self, position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The positions by which the stock model keeps packed sequences apart, without a mask."""
        return separated(position_ids, attention_mask)

    def check_tower(self) -> None:
        """Raise ValueError for a vision tower that V2V cannot work with."""

    def has_cls(self) -> bool:
        """Whether the tower has a CLS token, by which V2V can score patches."""
        return True

    def fitted(self, compression: CompressionConfig) -> CompressionConfig:
        """The nearest configuration that makes sense here: without CLS, patches are scored by what they receive."""
        v2v = compression.v2v
        if v2v is None or v2v.score != "cls" or self.has_cls():
            return compression
        logger.info("%s has no CLS token; v2v.score 'received' takes the place of 'cls'.", type(self).__name__)
        return dataclasses.replace(compression, v2v=dataclasses.replace(v2v, score="received"))

    def tower_tokens(self) -> int | None:
        """Tokens that V2V finds for each image, CLS included; None where that depends on the image."""
        return None

    def plan_settings(self, compression: CompressionConfig | None = None) -> PlanSettings | None:
        """What data workers need to plan the model's batches; None where it has to plan them itself.

        Args:
            compression: compression used instead of the model's own.
        """
        return None

    def longest_prompt(self) -> int | None:
        """Positions after which a prompt that is trained on is cut off; None cuts none."""
        return None

    @property
    def decoder(self) -> Any:
        """The language model without head."""
        return self.model.language_model

    def vision_towers(self) -> tuple[nn.Module, ...]:
        """The towers, that of images first, each once; empty in a model without any. By default transformers' names."""
        return parts_named(self, ("vision_tower", "image_tower", "video_tower", "visual"), "vision_towers")

    def projectors(self) -> tuple[nn.Module, ...]:
        """What takes features of towers to the language model's width; may lie inside a tower, and is then not its."""
        return parts_named(self, ("multi_modal_projector", "mm_projector"), "projectors")

    def enable_input_require_grads(self) -> None:
        """As in transformers, without the towers in which nothing is trained: their graph would lead nowhere."""
        super().enable_input_require_grads()
        try:
            towers, inside = self.vision_towers(), set(weights_of(self, self.projectors()).values())
        except ValueError:  # a family that does not say its parts: all of its towers stay in the graph
            return
        for tower in towers:
            if not any(weight.requires_grad for weight in set(tower.parameters()) - inside):
                hooks = [module._forward_hooks for module in tower.modules()]
                for handle in self._require_grads_hooks:
                    if any(handle.hooks_dict_ref() is held for held in hooks):
                        handle.remove()

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; where that is `sdpa`, the decoder can still take packed rows."""
        super().set_attn_implementation(*args, **kwargs)
        let_pack(self.decoder.config)

    def unused_modules(self) -> tuple[nn.Module, ...]:
        """Modules on which no output depends, such as a tower's layers behind the selected one."""
        return ()

    @property
    def compression(self) -> CompressionConfig:
        """What `config.json` says under "compression"; nothing there means no compression."""
        saved = getattr(self.config, "compression", None)
        if saved != self._parsed[0]:
            self._parsed = copy.deepcopy(saved), CompressionConfig.resolve(saved)
        return self._parsed[1]

    def set_compression(self, compression: CompressionConfig | str | Mapping[str, Any] | None) -> None:
        """Make a configuration, preset or YAML file the model's own; it is saved with the checkpoint.

        Raises:
            ValueError: if it does not fit the tower or the depth of the language model.
        """
        self.config.compression = self.checked(compression).to_dict()

    def checked(self, compression: CompressionConfig | str | Mapping[str, Any] | None) -> CompressionConfig:
        """A configuration in any form as this model takes it.

        Raises:
            ValueError: if it does not fit the tower or the depth of the language model.
        """
        asked = CompressionConfig.resolve(compression)
        resolved = self.fitted(asked)
        if resolved != CompressionConfig():
            self.check_decoder()
        if resolved.v2v is not None:
            self.check_tower()
            tokens = self.tower_tokens()
            if tokens is not None:
                resolved.v2v.token_count(tokens)
        if resolved.t2v is not None:
            resolved.t2v.check_depth(len(self.decoder.layers))
        asked.check_made_for(self.config, len(self.decoder.layers))
        if resolved.v2v is not None and resolved.v2v.crop_order not in self.crop_orders:
            raise ValueError(
                f"v2v.crop_order is {resolved.v2v.crop_order!r}, which a {type(self).__name__} does not know; accepted "
                f"are {', '.join(self.crop_orders)}."
            )
        return resolved

    def check_decoder(self) -> None:
        """Raise ValueError for a language model that the staged decoder would run wrongly."""
        if type(self.decoder).__name__ not in self.decoders:
            raise ValueError(
                f"The language model is a {type(self.decoder).__name__}; accepted are {', '.join(self.decoders)}. A "
                "family whose layers are like Llama's may name another in `decoders`."
            )
        StagedCache(self.decoder.config)  # refuses sliding windows

    def staged_forward(self, inputs: dict[str, Any], more: dict[str, Any]) -> Any:
        """Forward under a compression, on inputs by name: those of the stock signature, and what else was given."""
        own = {name: more.pop(name, None) for name in OWN_INPUTS}
        given, cache, asked = inputs | more | own, inputs.get(CACHE), own["compression"]
        check_cache(cache)
        filled: StagedCache | None = cache if is_filled(cache) else None
        chosen = None
        if asked is not None:
            chosen = self.checked(asked) if filled is None else self.fitted(CompressionConfig.resolve(asked))
        compression = self.compression if chosen is None else chosen
        requested = RequestedOutputs.of(
            given,
            self.training,
            compression.t2v.layers if compression.t2v else (),
            self.returns_layouts if own["output_layouts"] is None else bool(own["output_layouts"]),
            RouterLoss.of(self.decoder, given),
        )
        caching = given.get("use_cache")
        if caching is None:
            caching = self.decoder.config.use_cache and not requested.loss and not self.training
        config = self.decoder.config
        given["packing"] = packing_of_call(own["packing"], config, self.training, filled is not None, given)
        given = with_host_inputs(given) if filled is None else given
        if check_call(self, on_host(given, inputs), more, own):
            refuse_to_pack(own["packing"])
            refuse_beside_padding(config, given)
            output = self.stock.forward(self, **text_alone(self, inputs, more))
            return output if requested.logits else dataclasses.replace(output, logits=None)
        of_layers = _of_layers(more, given, requested)
        if filled is not None:
            check_compression_behind_cache(filled, chosen, self.compression)
            embeds = inputs.get("inputs_embeds")
            new = self.get_input_embeddings()(inputs["input_ids"]) if embeds is None else embeds
            outputs = continue_stages(self.decoder, new, filled, inputs.get("attention_mask"), **of_layers)
            return with_head(self.lm_head, outputs, requested)
        prefill = own["prefill"] or self.prefill(given, compression)
        if not prefill.layout.is_packed and packs(prefill.layout, given["packing"]):
            prefill = prefill.packed()
        if caching and cache is None:
            cache = StagedCache(self.decoder.config)
        cache = cache if caching else None
        if cache is not None:
            cache.filled_under = compression
        outputs = run_stages(
            self.decoder, prefill.embeddings, prefill.layout, compression.t2v, cache, prefill.added, **of_layers
        )
        return with_head(self.lm_head, outputs, requested, prefill.targets, prefill.width, self.summed_loss)

    def prefill(
        self, inputs: Mapping[str, Any], compression: CompressionConfig, padding_side: str | None = None
    ) -> Prefill:
        """Embed the text, encode what is seen, and bring both into rows.

        Args:
            inputs: checked arguments of `forward`, by name. With a `plan` nothing is asked of the device. Rows are
                packed where `packing` says so.
            compression: what to do.
            padding_side: side of the result's padding; None pads as the input is, and leaves text alone as it stands.

        Raises:
            ValueError: if the placeholders do not fit the images, or another tensor has another shape than the ids.
        """
        ids, plan, positions = inputs.get("input_ids"), inputs.get("plan"), None
        if ids is None or inputs.get("inputs_embeds") is not None:
            return of_embeddings(inputs)
        inputs = on_host(with_host_inputs(inputs))
        check_ids(self, inputs)
        given = {name: inputs.get(name) for name in self.visual_inputs}
        with record_function("llava.images"):
            spans: Mapping[int, Sequence[VisualSpan]] = self.visual_spans(compression, given)
        if plan is None and labels_given(inputs) and inputs.get("query_mask") is not None:  # of a collator, see there
            spans = hidden_unless_shown(spans, inputs["input_ids"])
        every = list(chain.from_iterable(spans.values()))
        features = [span.features for span in every]
        untouched = plan is None and padding_side is None and not features
        if untouched and not bool(self.is_placeholder(inputs["input_ids"]).any()):
            positions = self.rotary_positions(inputs["input_ids"], inputs.get("attention_mask"), inputs)
            return of_text(self.get_input_embeddings()(ids), inputs, positions)
        labels, shift_labels = inputs.get("labels"), inputs.get("shift_labels")
        if plan is None:
            with record_function("llava.splice"):
                plan, positions = self._plan(inputs, spans, compression, padding_side)
        elif shift_labels is not None or (labels is not None and plan.targets is None):
            plan = dataclasses.replace(plan, targets=Targets.of(labels, shift_labels))
        plan.require([len(span) for span in features], queries_of(compression))
        targets = plan.targets if labels_given(inputs) else None
        with record_function("llava.splice"):
            plan = at_slots(plan.to(ids.device), every)
            if positions is not None:
                plan = at_stock_positions(plan, positions, inputs.get("attention_mask"))
            if not plan.layout.is_packed and packs(plan.layout, inputs.get("packing") or "off"):
                plan = plan.packed()
            text = self.get_input_embeddings()(plan.ids)  # [S, D]
            embeddings, added = splice_embeddings(text, features, plan), splice_added(every, plan)
        return Prefill(embeddings, plan.layout, plan.width, targets, added=added)

    def _plan(
        self,
        inputs: Mapping[str, Any],
        spans: Mapping[int, Sequence[VisualSpan]],
        compression: CompressionConfig,
        side: str | None,
    ) -> tuple[SplicePlan, Tensor | None]:
        """Plan a prompt, on the host as its inputs are; with it positions [A, B, T] unless they are 0, 1, 2, ..."""
        ids, mask, query_mask = (inputs.get(name) for name in ("input_ids", "attention_mask", "query_mask"))
        labels, shift_labels = inputs.get("labels"), inputs.get("shift_labels")
        assert ids is not None
        answers = None
        if labels is None and shift_labels is None:
            answers = given_answer(ids, mask, self.is_placeholder(ids), inputs.get("logits_to_keep"))
            silent = answers is None and query_mask is None
            if silent and compression.t2v and self.training and torch.is_grad_enabled():
                warn_without_answers()
        queries = queries_of(compression)
        if queries == "salient" and query_mask is None and any(spans.values()):
            warn_without_query_mask()
        plan = plan_splice(
            ids,
            mask,
            spans,
            labels=labels,
            shift_labels=shift_labels,
            answers=answers,
            query_mask=query_mask,
            queries=queries,
            padding_side=side or padding_side_of(mask),
            max_length=self.longest_prompt() if labels_given(inputs) else None,
        )
        positions = self.rotary_positions(ids, mask, inputs)
        given = inputs.get("position_ids")
        if positions is None and given is not None and not plan.counts:
            positions = given.expand(ids.shape)[None]
        return plan, positions

    def is_placeholder(self, input_ids: Tensor) -> Tensor:
        """bool [B, T]: where images and videos go."""
        tokens = list(self.visual_spans(CompressionConfig(), dict.fromkeys(self.visual_inputs)))
        return torch.isin(input_ids, torch.tensor(tokens, device=input_ids.device))


def _of_layers(more: Mapping[str, Any], given: Mapping[str, Any], requested: RequestedOutputs) -> dict[str, Any]:
    """What the stock model would hand to its decoder layers, and whether to keep what their routers say."""
    used = ("num_items_in_batch", "use_cache", "shift_labels")
    handed = {name: value for name, value in without_packing(more).items() if name not in used}
    if requested.router is not None or given.get(ROUTERS) is not None:
        handed[ROUTERS] = requested.router is not None
    return handed


def queries_of(compression: CompressionConfig) -> str:
    """Who votes under a compression; without T2V it does not matter."""
    return compression.t2v.queries if compression.t2v else "last"
