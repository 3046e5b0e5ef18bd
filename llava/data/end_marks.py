"""Whether a tokenizer has a template's end mark as one token, and which templates fit a tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from llava.conversation import Conversation, SeparatorStyle, conv_templates, get_template

_ANSWER = "yes"


def split_end_mark(template: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The pieces into which a tokenizer splits a template's end mark; empty where it is one token, and for `plain`.

    Args:
        template: key of `conv_templates`.
        tokenizer: a fast one.

    Raises:
        ValueError: if there is no such template.
    """
    return _pieces(get_template(template), tokenizer)


def end_mark_warning(template: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What is wrong with a template for a tokenizer, with what to use instead; None where nothing is.

    Args:
        template: key of `conv_templates`.
        tokenizer: a fast one.

    Raises:
        ValueError: if there is no such template.
    """
    pieces = split_end_mark(template, tokenizer)
    if not pieces:
        return None
    mark, spelt = get_template(template).end_mark, ", ".join(map(repr, pieces))
    others = fitting_templates(tokenizer)
    advice = (
        f"Use --version {others[0]}" + (f" (or {', '.join(others[1:])})." if others[1:] else ".")
        if others
        else "None of the templates ends with a token of this tokenizer; take another tokenizer, or add the mark to it."
    )
    return (
        f"Template {template!r} ends an answer with {mark!r}, which is not one token of this tokenizer: it is taught "
        f"as {spelt}, and no token of its own ends an answer. {advice}"
    )


def fitting_templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Templates whose end mark is one token, those that end with the tokenizer's EOS first; equal ones once."""
    fitting: list[str] = []
    for name, template in conv_templates.items():
        plain = template.sep_style is SeparatorStyle.PLAIN
        known = any(conv_templates[other] == template for other in fitting)
        if not plain and not known and _is_special(template, tokenizer):
            fitting.append(name)
    return sorted(fitting, key=lambda name: conv_templates[name].end_mark != tokenizer.eos_token)


def _is_special(template: Conversation, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the end mark is one token that no other text spells: only such a mark is worth recommending."""
    return not _pieces(template, tokenizer) and template.end_mark in tokenizer.get_added_vocab()


def _pieces(template: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if template.sep_style is SeparatorStyle.PLAIN:
        return []
    text = _ANSWER + template.end_mark
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    of_mark = [
        (token, text[start:end])
        for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True)
        if end > len(_ANSWER)
    ]
    whole = len(of_mark) == 1 and of_mark[0][1] == template.end_mark and of_mark[0][0] != tokenizer.unk_token_id
    return [] if whole else [piece for _, piece in of_mark]
