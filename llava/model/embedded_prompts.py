"""Prompts that reach transformers' `generate` as embeddings, and what has to be said for it in other words then.

Shapes: B rows, T columns of the prompt.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, TextStreamer

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.generation_options import asked


def refuse_placeholders(embedding: Any, args: tuple[Any, ...]) -> None:
    """A forward hook of the word embeddings: raise ValueError for ids that no word has, such as `<image>`'s.

    They come here where something else than the model embeds a prompt, such as peft's soft prompts.
    """
    ids = args[0]
    is_prompt = ids.dim() > 1 and (ids.shape[-1] > 1 or ids.device.type == "cpu")  # for others a device would be asked
    if is_prompt and not torch.compiler.is_compiling() and bool((ids < 0).any()):
        raise ValueError(
            f"Token id {int(ids.min())} has no word embedding: a prompt with images was embedded before the model "
            "could put them in, as peft's prompt tuning and p-tuning do. Soft prompts work for text alone: use LoRA or "
            "another adapter of weights."
        )


def check_streamer(streamer: Any, rows: int) -> None:
    """Say before anything is computed what transformers would say after the images are encoded.

    Raises:
        ValueError: if a batch is to be streamed as text.
    """
    if rows > 1 and isinstance(streamer, TextStreamer):
        raise ValueError(
            f"A {type(streamer).__name__} streams one answer, but {rows} prompts were given; ask one at a time, or "
            "leave streamer out."
        )


def within_length(given: dict[str, Any], length: int, default: GenerationConfig) -> dict[str, Any]:
    """Arguments of `generate` with `max_length` said as `max_new_tokens`.

    It counts the prompt as the language model sees it, visual tokens in place of each `<image>` and what a filled cache
    holds included, and the answer.

    Args:
        given: arguments of the call.
        length: length of the prompt.
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
        last = torch.full((len(input_ids),), input_ids.shape[1] - 1, device=input_ids.device)  # [B]
        if attention_mask is not None:
            last = attention_mask.to(input_ids.device).long().cumsum(dim=1).argmax(dim=1)  # [B]
        other = input_ids.gather(1, last[:, None])  # [B, T] -> [B, 1]
    if bool((other == IMAGE_TOKEN_INDEX).any()):
        raise ValueError("guidance_scale compares with a prompt without images; give negative_prompt_ids of text.")
    repeats = asked("num_return_sequences", given, config, default) or 1
    changed = given | {"negative_prompt_ids": other.to(input_ids.device).repeat_interleave(repeats, dim=0)}
    mask = given.get("negative_prompt_attention_mask")
    if mask is not None:
        changed["negative_prompt_attention_mask"] = mask.to(input_ids.device).repeat_interleave(repeats, dim=0)
    return changed
