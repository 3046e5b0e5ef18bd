"""How an answer ends: by a token of the tokenizer, or by words of the conversation template."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.inference.inputs import stop_string
from llava.mm_utils import KeywordsStoppingCriteria


def needed_stop_string(tokenizer: PreTrainedTokenizerBase, conv_mode: str) -> str | None:
    """The words that end an answer; None where a token of its own does.

    Raises:
        ValueError: if there is no such template.
    """
    stop = stop_string(conv_mode)
    return None if stop == tokenizer.eos_token else stop


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Options of `generate` for what the checkpoint's own settings leave open: the tokens of end and padding.

    The tokenizer's EOS ends an answer also where those settings name other tokens only.
    """
    own = model.generation_config
    options: dict[str, Any] = {}
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    known = own.eos_token_id
    if known is None and end is not None:
        options["eos_token_id"] = end
    elif end is not None and end not in (ends := known if isinstance(known, list) else [known]):
        options["eos_token_id"] = [*ends, end]
    if own.pad_token_id is None and (pad is not None or end is not None):
        options["pad_token_id"] = end if pad is None else pad
    return options


def ending_options(model: Any, tokenizer: PreTrainedTokenizerBase, stop: str | None) -> dict[str, Any]:
    """Options of `generate` under which every row of a batch ends where its answer does.

    Args:
        model, tokenizer: that answer.
        stop: of `needed_stop_string`.
    """
    options: dict[str, Any] = dict(end_tokens(model, tokenizer))
    if stop is not None:
        nothing = torch.empty(1, 0, dtype=torch.long)
        options["stopping_criteria"] = [KeywordsStoppingCriteria([stop], tokenizer, nothing)]
    return options


def answer_text(decoded: str, stop: str | None) -> str:
    """What was answered, without what ended it."""
    return (decoded if stop is None else decoded.split(stop)[0]).strip()
