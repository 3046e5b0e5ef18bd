"""Special and added tokens as a folder's files name them, for a tokenizer built from its SentencePiece model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from llava.checkpoints.sentencepiece_model import USER_DEFINED
from llava.checkpoints.user_symbols import find_symbols

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def special_tokens(settings: Mapping[str, Any], special_map: Mapping[str, Any], proto: Any) -> dict[str, Any]:
    """BOS, EOS and so on, by role: of `tokenizer_config.json`, else of `special_tokens_map.json`, else of the model.

    Args:
        settings: `tokenizer_config.json`.
        special_map: `special_tokens_map.json`.
        proto: the SentencePiece model.
    """
    found = {role: settings.get(role) or special_map.get(role) for role in _ROLES}
    known = {role: _content(token) for role, token in found.items() if token}
    trainer = proto.trainer_spec
    own = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "unk_token": trainer.unk_id}
    for role, index in own.items():
        if role not in known and role not in settings and 0 <= index < len(proto.pieces):
            known[role] = proto.pieces[index].piece
    return known


def named_tokens(
    settings: Mapping[str, Any], whole: Path | None, added: Mapping[str, int], special: Mapping[str, str]
) -> dict[str, tuple[int | None, AddedToken]]:
    """Tokens that are found in a text before anything else, with their ids where the files say them.

    As in the slow tokenizers, none is normalised: each is looked for in the text as it stands.

    Args:
        settings: `tokenizer_config.json`.
        whole: `tokenizer.json`.
        added: `added_tokens.json`.
        special: of `special_tokens`.
    """
    named: dict[str, tuple[int | None, AddedToken]] = {}
    listed = settings.get("added_tokens_decoder") or {}
    if not listed and whole is not None:
        tokens = json.loads(whole.read_text(encoding="utf-8")).get("added_tokens") or []
        listed = {token["id"]: token for token in tokens}
    for index, token in listed.items():
        named[token["content"]] = (int(index), _token(token))
    for content, index in added.items():
        named.setdefault(content, (index, _token({"content": content})))
    extra = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    for token in [*special.values(), *extra]:
        content = _content(token)
        index, known = named.get(content, (None, None))
        named[content] = (index, _token({"content": content} if known is None else _fields(known), special=True))
    return named


def add_named(tokenizer: Tokenizer, named: Mapping[str, tuple[int | None, AddedToken]], proto: Any) -> None:
    """Add named tokens and the model's user-defined symbols to a tokenizer.

    Raises:
        ValueError: if a token cannot get the id that the files give it, or a symbol cannot be found as SentencePiece
            finds it.
    """
    symbols = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED and piece.piece not in named]
    rules = proto.normalizer_spec
    changes = rules.remove_extra_whitespaces or rules.precompiled_charsmap
    if symbols and rules.add_dummy_prefix and not changes and isinstance(tokenizer.model, models.BPE):
        find_symbols(tokenizer, proto, symbols)
        symbols = []
    if symbols and (rules.add_dummy_prefix or rules.remove_extra_whitespaces):
        raise ValueError(
            f"it has the user-defined symbol {symbols[0]!r} and changes spaces around texts, which "
            "cannot be rebuilt; list the symbol under added_tokens_decoder in tokenizer_config.json"
        )
    tokenizer.add_tokens([AddedToken(symbol, normalized=False, special=False) for symbol in symbols])
    order = sorted(named.values(), key=lambda entry: (entry[0] is None, entry[0] or 0))
    for index, token in order:
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        got = tokenizer.token_to_id(token.content)
        if index is not None and got != index:
            raise ValueError(f"the added token {token.content!r} has the id {index}, but the next free one is {got}")


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _fields(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content, "lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}


def _token(fields: Mapping[str, Any], special: bool = False) -> AddedToken:
    kept = {name: bool(fields.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
    return AddedToken(fields["content"], normalized=False, special=special or bool(fields.get("special")), **kept)
