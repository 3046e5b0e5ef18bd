"""What the project's own model may be given, and text that needs an attention of its own: packed, or with a 4-D mask.

Such text runs through transformers' own Llama, which separates packed sequences for every implementation of attention.
Shapes: B rows, T positions, D width.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaModel

from llava.compression.layout import TokenLayout
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.accepted_inputs import (
    check_cache,
    check_causal,
    check_counting,
    check_matrix,
    check_no_media,
    check_packing,
    check_padding_mask,
    check_position_shape,
    check_tokens,
    is_attention_matrix,
    refuse_apart,
    refuse_soft_prompt,
    separated,
    stands_apart,
)
from llava.model.behind_cache import check_behind_cache
from llava.model.generation_options import asked
from llava.model.staged_generation import is_filled

_llama_forward = inspect.unwrap(LlamaModel.forward)
"""Llama's forward without the decorators, which LLaVA's forward has already."""


def check_forward(
    ids: Tensor | None,
    embeds: Tensor | None,
    mask: Any,
    positions: Tensor | None,
    cache: Any,
    images: Any,
    layout: TokenLayout | None,
    more: Mapping[str, Any],
    use_cache: bool | None,
    cached_by_default: bool,
) -> tuple[bool, bool]:
    """Look at everything that `LlavaLlamaForCausalLM.forward` was given, before it computes anything.

    Returns:
        whether the prompt has to be spliced, and whether it is text that needs an attention of its own (`run_apart`).

    Raises:
        ValueError: names what cannot be done and what to change.
    """
    _check_prompt(ids, embeds, images, more)
    check_cache(cache)
    check_causal(more)
    if layout is not None:
        if embeds is None or tuple(layout.valid.shape) != tuple(embeds.shape[:2]):
            raise refuse_soft_prompt()
        return False, False
    rows, columns = (ids if embeds is None else embeds).shape[:2]  # type: ignore[union-attr]
    if is_filled(cache):
        _check_new_text(ids, images)
        check_behind_cache(cache, (rows, columns), mask, positions)
        check_packing(more, packed=False)
        return False, False
    check_position_shape(positions, rows, columns)
    if ids is not None and (images is not None or _holds_image(ids)):
        check_padding_mask(mask, rows, columns)
        check_counting(positions, mask)
        check_packing(more, packed=False)
        return True, False
    if mask is not None and is_attention_matrix(mask):
        check_matrix(mask, rows, columns)
    else:
        check_padding_mask(mask, rows, columns)
    apart = stands_apart(positions, mask, cache is not None or (cached_by_default if use_cache is None else use_cache))
    check_packing(more, apart)
    if apart and (cache is not None or use_cache):
        raise refuse_apart("past_key_values" if cache is not None else "use_cache=True")
    return False, apart


def _check_prompt(ids: Tensor | None, embeds: Tensor | None, images: Any, more: Mapping[str, Any]) -> None:
    """Raise ValueError unless there is one prompt, and its images are where the model looks for them."""
    if (ids is None) == (embeds is None):
        raise ValueError("Give exactly one of input_ids and inputs_embeds.")
    check_tokens("input_ids" if embeds is None else "inputs_embeds", ids if embeds is None else embeds)
    check_no_media(more, "give the pixels as images")
    if embeds is not None and images is not None:
        raise ValueError(
            "images were given beside inputs_embeds, which do not say where they go; give the prompt as input_ids. "
            "Soft prompts of peft (prompt tuning, p-tuning) make such embeddings and work for text alone: use LoRA or "
            "another adapter of weights."
        )


def _check_new_text(ids: Tensor | None, images: Any) -> None:
    """Raise ValueError for images behind a filled cache."""
    if images is not None or (ids is not None and _is_looked_at(ids) and _holds_image(ids)):
        raise ValueError(
            "Images cannot be added behind a filled cache, whose layers have chosen their visual tokens; give the "
            "whole conversation without past_key_values."
        )


def _is_looked_at(ids: Tensor) -> bool:
    """Whether ids behind a cache are looked at: not where a device would be waited for at each token of `generate`."""
    return ids.shape[-1] > 1 or ids.device.type == "cpu"


def _holds_image(input_ids: Tensor) -> bool:
    """Whether a prompt has to be spliced; plain text goes to the decoder as it stands, position for position."""
    return bool((input_ids == IMAGE_TOKEN_INDEX).any())


def run_apart(
    decoder: Any, embeddings: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, **kwargs: Any
) -> Any:
    """Run text embeddings [B, T, D] of packed sequences, or with a 4-D mask, through transformers' own Llama."""
    mask: Tensor | None = attention_mask
    if not is_attention_matrix(attention_mask) and position_ids is not None:
        position_ids, mask = separated(position_ids, attention_mask), None
    return _llama_forward(
        decoder,
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=position_ids,
        use_cache=False,
        **kwargs,
    )


def refuse_placeholders(embedding: Any, args: tuple[Any, ...]) -> None:
    """A forward hook of the word embeddings: raise ValueError for ids that no word has, such as `<image>`'s.

    They come here where something else than the model embeds a prompt, such as peft's soft prompts.
    """
    ids = args[0]
    if _is_looked_at(ids) and not torch.compiler.is_compiling() and bool((ids < 0).any()):
        raise ValueError(
            f"Token id {int(ids.min())} has no word embedding: a prompt with images was embedded before the model "
            "could put them in, as peft's prompt tuning and p-tuning do. Soft prompts work for text alone: use LoRA or "
            "another adapter of weights."
        )


def within_length(given: dict[str, Any], length: int, default: GenerationConfig) -> dict[str, Any]:
    """Arguments of `generate` with `max_length` said as `max_new_tokens`.

    It counts the prompt as the language model sees it, visual tokens in place of each `<image>` and what a filled cache
    holds included, and the answer.

    Args:
        given: arguments of the call.
        length: of the prompt.
        default: the model's own generation configuration.

    Raises:
        ValueError: if nothing is left for an answer.
    """
    config = given.get("generation_config")
    if asked("max_new_tokens", given, config or default) is not None:
        return given
    most = asked("max_length", given, config, default)
    if most is None:
        return given
    if most <= length:
        raise ValueError(
            f"max_length is {most}, but the prompt alone has {length} tokens as the language model sees it, visual "
            "tokens included; raise max_length, or give max_new_tokens, which counts the answer alone."
        )
    changed = {name: value for name, value in given.items() if name != "max_length"}
    if config is not None and config.max_length is not None:
        changed["generation_config"] = copy.deepcopy(config)
        changed["generation_config"].max_length = None
    return changed | {"max_new_tokens": most - length}


def with_other_side(
    given: dict[str, Any], input_ids: Tensor, attention_mask: Tensor | None, default: GenerationConfig
) -> dict[str, Any]:
    """Arguments of `generate` in which `guidance_scale` has its other side: as in transformers, the last token alone.

    Raises:
        ValueError: if that token is an image, or for beams, whose other sides transformers does not reorder.
    """
    config = given.get("generation_config")
    scale = asked("guidance_scale", given, config, default)
    if scale in (None, 1):
        return given
    if (asked("num_beams", given, config, default) or 1) > 1:
        raise ValueError(f"guidance_scale is {scale}, which does not work with num_beams; leave one of them out.")
    other = given.get("negative_prompt_ids")
    if other is None:
        last = torch.full((len(input_ids),), input_ids.shape[1] - 1, device=input_ids.device)
        if attention_mask is not None:
            last = attention_mask.to(input_ids.device).long().cumsum(dim=1).argmax(dim=1)
        other = input_ids.gather(1, last[:, None])
    if _holds_image(other):
        raise ValueError("guidance_scale compares with a prompt without images; give negative_prompt_ids of text.")
    repeats = asked("num_return_sequences", given, config, default) or 1
    changed = given | {"negative_prompt_ids": other.to(input_ids.device).repeat_interleave(repeats, dim=0)}
    mask = given.get("negative_prompt_attention_mask")
    if mask is not None:
        changed["negative_prompt_attention_mask"] = mask.to(input_ids.device).repeat_interleave(repeats, dim=0)
    return changed
