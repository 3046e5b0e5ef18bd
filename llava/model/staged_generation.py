"""What a model whose layers cache different lengths needs from transformers' `generate`.

A mixin in front of a class of transformers: it makes the cache, repeats for beams what transformers does not know, and
lets a filled cache be continued with new text. Shapes: B rows, n new tokens.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from transformers.generation import GenerationConfig, GenerationMixin

from llava.compression.config import CompressionConfig
from llava.model.accepted_inputs import check_cache, check_padding_mask, check_tokens, refuse_soft_prompts_of_peft
from llava.model.cache_name import CACHE, as_named, named
from llava.model.call_checks import asks_nothing, check_prompt
from llava.model.experts import ASKED as ROUTERS
from llava.model.generation_options import REFUSED, check_chosen_logits, check_options
from llava.model.staged_cache import StagedCache, is_filled

if TYPE_CHECKING:
    from transformers import GenerationMixin as _Base
else:
    _Base = object

_BEHIND_CONFIG = list(inspect.signature(GenerationMixin.generate).parameters)[3:]
"""Arguments of `generate` that may follow its configuration by position."""


class StagedGeneration(_Base):
    """Generation of a `StagedModel`; stands before the class of transformers among the bases.

    The prompt is encoded once and reaches `forward` ready for the decoder, as the argument `prefill`.

    With a filled `StagedCache` as `past_key_values` the inputs are new text only, and `attention_mask` is theirs,
    [B, n] (of a longer one the last n columns count). The cache is extended in place; beams and several returned
    sequences work on a copy of it.
    """

    stock: ClassVar[Any]
    visual_inputs: ClassVar[tuple[str, ...]]
    config: Any
    generation_config: Any
    compression: Any
    checked: Any
    prefill: Any
    refused_options: ClassVar[Mapping[str, str]] = REFUSED
    returns_prompt: ClassVar[bool] = True
    """Whether `generate` returns the ids of the prompt in front of the new ones, as transformers does."""
    takes_filled_cache: ClassVar[bool] = False
    """Whether `generate` goes on behind a filled cache, which `forward` of every family does."""

    def is_staged(self, compression: Any = None) -> bool:
        """Whether a call, with this compression instead of the model's own, compresses anything."""
        return not asks_nothing(getattr(self.config, "compression", None) if compression is None else compression)

    def _goes_in_stages(self, given: Mapping[str, Any]) -> bool:
        """Whether a call of `generate` takes the way of compressed models; for packed rows there is no other."""
        return self.is_staged(given.get("compression")) or given.get("packing") == "on"

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; options that cannot be are refused first, see `llava.model.generation_options`."""
        by_name = dict(zip(_BEHIND_CONFIG, args, strict=False)) | kwargs
        if self._goes_in_stages(kwargs):
            cache = self.check_generation(by_name, generation_config)
            _check_prompt(inputs, by_name, is_filled(cache))
        elif kwargs.get("compression") is not None and by_name.get("assistant_model") is not None:
            if self.is_staged():
                raise ValueError(
                    "assistant_model is given with a compression for this call, which transformers would hand on to "
                    'the assistant; ask compress(model, "none") instead, without compression.'
                )
            del kwargs["compression"]
        return super().generate(inputs, generation_config, *args, **kwargs)

    def check_generation(self, given: dict[str, Any], config: GenerationConfig | None) -> Any:
        """The cache among the arguments of `generate`; raise ValueError for options that cannot be."""
        check_options(self.refused_options, given, config, self.generation_config)
        check_chosen_logits(given.get("return_logits"))
        cache = as_named(given).get(CACHE)
        check_cache(cache)
        return cache

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, for a model without a compression; `generate_batch` begins here.

        Raises:
            ValueError: where a compression acts.
        """
        if self.is_staged():
            raise ValueError(
                "Continuous batching (generate_batch, cache_implementation='paged') keeps one cache for all layers, "
                "but layers of this model may cache different lengths; use generate with a padded batch."
            )
        return super().init_continuous_batching(*args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers, but behind a filled cache positions and masks come from the cache."""
        cache = past_key_values if cache is None else cache
        filled = isinstance(cache, StagedCache) and is_filled(cache)
        if filled and is_first_iteration:
            next_sequence_length = None  # transformers would cut off as many tokens as the cache holds
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **named(cache),
            **kwargs,
        )
        if getattr(self.config.get_text_config(decoder=True), ROUTERS, False):
            # transformers would want a loss of the new tokens, and fail on their mask
            inputs.setdefault(ROUTERS, False)
        if filled:
            inputs.pop("position_ids", None)
        if filled and not is_first_iteration:
            inputs.pop("attention_mask", None)
        if filled or not is_first_iteration:
            inputs.pop("prefill", None)
        return inputs

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        prefill = kwargs.pop("prefill", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        own = {} if prefill is None else {"prefill": prefill}
        if expand_size > 1:
            own = {name: value.repeat_interleave(expand_size) for name, value in own.items()}
            cache = model_kwargs.get(CACHE)
            if isinstance(cache, StagedCache) and is_filled(cache):
                cache = copy.deepcopy(cache)
                cache.batch_repeat_interleave(expand_size)
                own[CACHE] = cache
        return input_ids, model_kwargs | own

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
        compression = self.compression if given is None else self.checked(given)
        if compression == CompressionConfig() and not self._goes_in_stages(model_kwargs):
            return self.stock._maybe_prepare_encoder_kwargs_for_generation(
                self, inputs_tensor, model_kwargs, model_input_name, generation_config
            )
        generation_config.use_cache = True
        cache = as_named(model_kwargs).get(CACHE)
        check_cache(cache)
        if is_filled(cache):
            raise ValueError(
                "past_key_values already holds tokens; generate starts from the whole prompt, so leave it out."
            )
        refuse_soft_prompts_of_peft(self)
        prompt = model_kwargs | {model_input_name or "input_ids": inputs_tensor, "packing": None}  # packed by forward
        check_prompt(self, prompt, generating=True)
        ready = {"prefill": self.prefill(prompt, compression, padding_side="left"), "compression": compression}
        used = (*self.visual_inputs, "query_mask", "position_ids")
        return {name: value for name, value in model_kwargs.items() if name not in used} | ready

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Any:
        """None under a compression, which numbers its tokens itself: what a caller gives is told from what is made."""
        if not self._goes_in_stages(model_kwargs):
            return self.stock._prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs)
        return None

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        if not self._goes_in_stages(model_kwargs):
            self.stock._prepare_cache_for_generation(self, generation_config, model_kwargs, *args)
            return
        given = model_kwargs.get(CACHE)
        if given is None:
            if generation_config.use_cache is not False:
                model_kwargs[CACHE] = StagedCache(self.config.get_text_config(decoder=True))
            return
        check_cache(given)
        given._is_user_defined = True  # tells transformers that the cache outlives the call


def _check_prompt(inputs: Any, given: Mapping[str, Any], filled: bool) -> None:
    """Raise ValueError for ids or a mask that are no tensor or do not fit, before transformers looks at them."""
    several = (inputs, given.get("input_ids"), given.get("inputs_embeds"))
    for ids in several[:2]:
        if ids is not None and not isinstance(ids, Tensor):
            check_tokens("input_ids", ids)
    tokens = next((tokens for tokens in several if isinstance(tokens, Tensor) and tokens.dim() > 1), None)
    if tokens is not None:
        rows, columns = tokens.shape[:2]
        check_padding_mask(given.get("attention_mask"), rows, columns, behind_cache=filled)
