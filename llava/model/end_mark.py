"""What ends an answer in a conversation template, among the tokens at which generation stops."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.conversation import SeparatorStyle, get_template

_ANSWER = "yes"


def stop_at_end_mark(generation: Any, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Add a template's end mark to `eos_token_id`, where it is an added token that a text spells by itself.

    Args:
        generation: the model's `generation_config`; changed in place.
        tokenizer: of the model.
        template: key of `conv_templates`; None and `plain` change nothing.

    Raises:
        ValueError: if there is no such template.
    """
    conversation = None if template is None else get_template(template)
    if conversation is None or conversation.sep_style is SeparatorStyle.PLAIN:
        return
    mark = conversation.end_mark
    if mark not in tokenizer.get_added_vocab():
        return
    end = tokenizer.convert_tokens_to_ids(mark)
    spelt = tokenizer(_ANSWER + mark, add_special_tokens=False, verbose=False).input_ids
    known = generation.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    if spelt[-1:] == [end] and end not in ends:
        ends.append(end)
        generation.eos_token_id = ends if len(ends) > 1 else end
