"""How an answer ends: by a token of the tokenizer, or by words of the conversation template."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.mm_utils import KeywordsStoppingCriteria


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


def stopping_at(stop: str | None, tokenizer: PreTrainedTokenizerBase) -> list[KeywordsStoppingCriteria]:
    """Criteria under which every row of a batch ends where its answer does; none where there are no such words.

    Args:
        stop: the words that end an answer, see `llava.data.families.base.ModelInputs.stop`.
        tokenizer: tokenizer of the model.
    """
    nothing = torch.empty(1, 0, dtype=torch.long)
    return [] if stop is None else [KeywordsStoppingCriteria([stop], tokenizer, nothing)]


def answer_text(decoded: str, stop: str | None) -> str:
    """What was answered, without what ended it."""
    return (decoded if stop is None else decoded.split(stop)[0]).strip()
