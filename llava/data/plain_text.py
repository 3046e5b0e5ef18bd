"""Tokenises text of users and models so that nothing in it becomes a special token.

A prompt is one text: a template's marks (`</s>`, `<|im_end|>`) stand between what was said, and both are tokenised
together, for pieces may cross from one to the other. Where something that was said spells a special token, the prompt
is tokenised with a copy of the tokenizer that knows its special tokens by names of private-use characters; the
template's marks are written in those names, so that whatever else spells a special token is ordinary text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PRIVATE = range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)
_NEVER_CHOSEN = -1e5  # score of a Unigram piece that no text spells


def tokenize_plain_text(
    text: str, said: Sequence[Span], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[Span]]:
    """Ids of a text, and the characters [start, end) that each came from.

    Where nothing that was said spells a special token, this is what the tokenizer itself gives. Special tokens are the
    tokenizer's added tokens that are marked `special`, and pieces for bytes (`<0x0A>`); other added tokens are words
    like any other.

    Args:
        text: a prompt, or a stretch of one.
        said: the characters [start, end) of it that people or models wrote, in order.
        tokenizer: a fast one.

    Raises:
        ValueError: if the text holds half of a surrogate pair, which is no character.
    """
    _require_characters(text)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(found["input_ids"]), [tuple(span) for span in found["offset_mapping"]]
    names = _names_in(text, tokenizer)
    marks, spelt = [], False
    for start, end, token in _specials(text, ids, offsets, names, tokenizer):
        if any(start < last and end > first for first, last in said):
            spelt = True
        elif text[start:end] == names[token]:
            marks.append((start, end, token))
    if not spelt:
        return ids, offsets
    private, private_names, own_ids = _private_copy(
        tokenizer, tuple(sorted(names.items())), _free_block(text, len(names))
    )
    encoded = private.encode(_in_private_names(text, marks, private_names), add_special_tokens=False)
    return [own_ids.get(token, token) for token in encoded.ids], list(encoded.offsets)


def _names_in(text: str, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The special tokens of a tokenizer by id, and its pieces for bytes where a text may spell one."""
    backend = _backend(tokenizer)
    if backend is None:
        return {}
    names = {index: token.content for index, token in backend.get_added_tokens_decoder().items() if token.special}
    if "<0x" in text:
        spelt = (f"<0x{value:02X}>" for value in range(256))
        names |= {index: name for name in spelt if (index := backend.token_to_id(name)) is not None}
    return names


def _backend(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` of a fast tokenizer; None for one that only estimates, and knows no special tokens."""
    return getattr(tokenizer, "backend_tokenizer", None)


def _specials(
    text: str, ids: Sequence[int], offsets: Sequence[Span], names: Mapping[int, str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[int, int, int]]:
    """Start, end and id of each special token that characters of a text spell, blanks around it left out."""
    normalizer = getattr(_backend(tokenizer), "normalizer", None)
    for token, (start, end) in zip(ids, offsets, strict=True):
        if token not in names:
            continue
        stretch = text[start:end]
        start, end = end - len(stretch.lstrip()), start + len(stretch.rstrip())
        if token == tokenizer.unk_token_id or _BYTE.fullmatch(names[token]):
            # These also stand for characters that the vocabulary lacks, which spells nothing.
            stretch = stretch if normalizer is None else normalizer.normalize_str(stretch)
            if names[token] not in stretch:
                continue
        yield start, end, token


def _in_private_names(text: str, marks: Sequence[tuple[int, int, int]], names: Mapping[int, str]) -> str:
    parts, position = [], 0
    for start, end, token in marks:
        parts += [text[position:start], names[token]]
        position = end
    return "".join([*parts, text[position:]])


def _free_block(text: str, size: int) -> int:
    """The first of `size` private-use characters in a row of which the text holds none.

    Raises:
        ValueError: if the text holds some everywhere.
    """
    held = sorted(code for code in map(ord, set(text)) if code >= _PRIVATE[0].start)
    for block in _PRIVATE:
        first = block.start
        for code in [*(code for code in held if code in block), block.stop]:
            if code - first >= size:
                return first
            first = code + 1
    raise ValueError("The text holds private-use characters of all planes beside special tokens; take them out.")


@lru_cache(maxsize=4)
def _private_copy(
    tokenizer: PreTrainedTokenizerBase, tokens: tuple[tuple[int, str], ...], block: int
) -> tuple[Tokenizer, dict[int, str], dict[int, int]]:
    """A tokenizer whose special tokens have names of private-use characters, as long as their own.

    Args:
        tokenizer: tokenizer to copy.
        tokens: ids and contents of its special tokens, perhaps with the pieces for bytes.
        block: the first private-use character.

    Returns:
        The copy; the private names by the tokenizer's ids; and the tokenizer's id for each added token of the copy.
    """
    backend = _backend(tokenizer)
    state = json.loads(backend.to_str())
    of_bytes = {content for _, content in tokens if _BYTE.fullmatch(content)}
    names = {
        content: chr(block + number) * len(content)
        for number, (_, content) in enumerate(tokens)
        if content not in of_bytes
    }
    added = [token for token in state["added_tokens"] if token["content"] not in of_bytes]
    own = [backend.token_to_id(token["content"]) for token in added]
    for token in added:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "single_word": False}
    state |= {"added_tokens": added, "post_processor": None, "padding": None, "truncation": None}
    _rename_pieces(state["model"], names, of_bytes)
    private = Tokenizer.from_str(json.dumps(state))
    copied: list[Any] = [private.token_to_id(token["content"]) for token in added]
    own_ids = dict(zip(copied, own, strict=True))
    return private, {token: names[content] for token, content in tokens if content in names}, own_ids


def _rename_pieces(model: dict[str, Any], names: Mapping[str, str], of_bytes: set[str]) -> None:
    """Let no text spell a special token through the model's own pieces; changes its description in place."""
    if isinstance(model["vocab"], list):  # Unigram: pieces with their scores
        model["vocab"] = [
            [names.get(piece, piece), _NEVER_CHOSEN if piece in of_bytes else score] for piece, score in model["vocab"]
        ]
        return
    model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        unspelt = names.keys() | of_bytes
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if not unspelt & {*pair, "".join(pair)}]


def _require_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise ValueError(f"The text holds {half}, half of a surrogate pair; write the whole character.") from None
