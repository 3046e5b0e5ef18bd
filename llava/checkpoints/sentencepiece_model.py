"""A SentencePiece model as a tokenizer of the `tokenizers` library that gives SentencePiece's own ids.

transformers' conversion orders the merges of a BPE model by the ids of their pieces. SentencePiece merges the pair
whose piece has the highest *score*, and the leftmost of those with equal scores; ids and scores part ways at runs of
spaces, which Llama's vocabulary lists first and scores last. The conversion also lets pieces for bytes and control
pieces be spelled by text, and `Metaspace` swallows the first of a text's leading spaces. What is built here does none
of this. Sources: sentencepiece 0.2 (`bpe_model.cc`, `normalizer.cc`) and the slow `LlamaTokenizer` of transformers
4.31 to 4.57, with which LLaVA was trained.

An added token would be cut out before the space is put in front of a text, so that a text which begins with a
user-defined symbol of a BPE model lost that space. Here the spaces come first, then symbols are cut out, and a stretch
that is a piece is that piece (`ignore_merges`). So that no stretch spells a control or byte piece, which SentencePiece
never finds in a text, such a stretch is cut at a place where SentencePiece cuts it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import SentencePieceExtractor

SPACE = "▁"
_UNIGRAM, _BPE = 1, 2
_NORMAL, USER_DEFINED, _UNUSED = 1, 4, 5  # types of pieces; others are control, unknown and byte
_WRITTEN = (_NORMAL, USER_DEFINED, _UNUSED)
_NEVER_CHOSEN = -1e5  # score of a piece that no text spells
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_sentencepiece(path: Path) -> Any:
    """The `ModelProto` of a SentencePiece file.

    Raises:
        ImportError: if sentencepiece or protobuf is missing.
        ValueError: if the file is something else.
    """
    try:
        proto = SentencePieceExtractor(str(path)).proto
    except ImportError:
        raise
    except Exception as error:  # protobuf's own errors derive from Exception
        raise ValueError(f"{path} is not a SentencePiece model ({error}).") from error
    if not proto.pieces:
        raise ValueError(f"{path} is not a SentencePiece model: it holds no pieces.")
    return proto


def build_tokenizer(proto: Any, legacy: bool) -> Tokenizer:
    """A tokenizer with the ids of a SentencePiece model, without special tokens.

    Args:
        proto: the model.
        legacy: as in `tokenizer_config.json`. Every stretch of text between special tokens gets the space that
            SentencePiece puts before a text; with False only a stretch at the very start does.

    Raises:
        ValueError: for a model of words or characters, or one that writes spaces behind words.
    """
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise ValueError(f"its model_type is {trainer.model_type}; BPE ({_BPE}) and unigram ({_UNIGRAM}) are read")
    if trainer.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise ValueError(
            "it writes spaces behind words or not at all; only models that mark them before words are read"
        )
    tokenizer = Tokenizer(_unigram(proto) if trainer.model_type == _UNIGRAM else _bpe(proto))
    spaced = rules.add_dummy_prefix
    steps = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    shape_spaces(tokenizer, legacy, spaced, bool(rules.remove_extra_whitespaces), steps)
    tokenizer.decoder = _decoder(spaced)
    return tokenizer


def shape_spaces(
    tokenizer: Tokenizer, legacy: bool, prefix: bool = True, collapse: bool = False, before: list[Any] | None = None
) -> None:
    """Give a tokenizer of a SentencePiece vocabulary SentencePiece's treatment of spaces.

    Args:
        tokenizer: changed in place.
        legacy: whether every stretch between special tokens gets the leading space, or the first alone.
        prefix: `add_dummy_prefix`; without it nothing gets one.
        collapse: `remove_extra_whitespaces`: runs of spaces become one, those at both ends go.
        before: normalizers that come first.
    """
    steps = list(before or [])
    every = legacy and prefix
    if collapse:
        # Where the first stretch alone gets a space, one is left of a run: behind a special token it counts.
        ends = r"[ ▁]+\z" if prefix and not legacy else r"\A +|[ ▁]+\z"
        steps += [normalizers.Replace(Regex(ends), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(SPACE)] if every else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = None
    if prefix and not legacy:
        # Metaspace adds no mark before a text that begins with one. In front of texts whose spaces are marked
        # already, "a space for the mark" is never there, so the first one always adds; the second renames it.
        first = pre_tokenizers.Metaspace(SPACE if collapse else " ", prepend_scheme="first", split=False)
        then = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, then])


def _decoder(prefix: bool) -> Any:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", left=1)] if prefix else []))


def _bpe(proto: Any) -> models.BPE:
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    return models.BPE(
        vocab=vocabulary,
        merges=merges_of(proto),
        unk_token=proto.trainer_spec.unk_piece or "<unk>",
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def merges_of(proto: Any) -> list[tuple[str, str]]:
    """The pairs that SentencePiece merges, first those that it merges first.

    Higher scores come first. Among equal scores (Llama scores all runs of spaces alike) SentencePiece takes the
    leftmost pair, so that a run grows from its left end: the longer left part comes first, then the longer right part.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type in _WRITTEN}

    def pairs() -> Iterator[tuple[float, int, int, str, str]]:
        for piece, score in scores.items():
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in scores and right in scores:
                    yield -score, -len(left), -len(right), left, right

    return [(left, right) for _, _, _, left, right in sorted(pairs(), key=lambda pair: pair[:3])]


def merged_by_id(model: Mapping[str, Any]) -> bool:
    """Whether the merges of a `tokenizer.json` are ordered as transformers' conversion without scores orders them.

    By the id of the merged piece, and among the ways to build it the shorter left part first. A BPE model that was
    trained by the `tokenizers` library knows one way for each piece and is never taken for one.

    Args:
        model: the entry `model` of the file.
    """
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or ()]
    ids = model.get("vocab") or {}
    keys = [(ids.get(left + right, -1), len(left)) for left, right in pairs]
    several_ways = len({index for index, _ in keys}) < len(keys)
    return several_ways and keys == sorted(keys)


def _unigram(proto: Any) -> models.Unigram:
    vocabulary = [
        (piece.piece, piece.score if piece.type in (_NORMAL, USER_DEFINED) else _NEVER_CHOSEN) for piece in proto.pieces
    ]
    return models.Unigram(
        vocab=vocabulary, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback
    )


def find_symbols(tokenizer: Tokenizer, proto: Any, symbols: list[str]) -> None:
    """Make a tokenizer of `build_tokenizer` find symbols in a text.

    Args:
        tokenizer: tokenizer with a BPE model; changed in place.
        proto: its SentencePiece model.
        symbols: its user-defined pieces.

    Raises:
        ImportError: without sentencepiece.
        ValueError: if the ids would not be SentencePiece's.
    """
    from sentencepiece import SentencePieceProcessor

    bare = type(proto).FromString(proto.SerializeToString())
    bare.normalizer_spec.add_dummy_prefix = False
    model = SentencePieceProcessor(model_proto=bare.SerializeToString())
    for index, piece in enumerate(proto.pieces):
        found = model.encode(piece.piece.replace(SPACE, " ")) if piece.type == _NORMAL else [index]
        if found != [index] or piece.type == _UNUSED:
            raise ValueError(
                f"it has the user-defined symbol {symbols[0]!r} and the piece {piece.piece!r}, which no text becomes; "
                "list the symbols under added_tokens_decoder in tokenizer_config.json"
            )
    unspelt = [piece.piece for piece in proto.pieces if piece.type not in (_NORMAL, USER_DEFINED)]
    cuts = "|".join(_cut(model, name) for name in sorted(unspelt, key=len, reverse=True))
    whole = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
    before = [] if tokenizer.pre_tokenizer is None else [tokenizer.pre_tokenizer]
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (whole, cuts)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, *steps])
    bpe: Any = tokenizer.model
    bpe.ignore_merges = True


def _cut(model: Any, name: str) -> str:
    """A pattern for the first part of a text that is a name and nothing else, cut where SentencePiece cuts it."""
    for at in range(1, len(name)):
        first, rest = name[:at], name[at:]
        if model.encode(first) + model.encode(rest) == model.encode(name):
            return rf"\A{re.escape(first)}(?={re.escape(rest)}\z)"
    raise ValueError(f"its piece {name!r} cannot be kept from texts that spell it")


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
        special: result of `special_tokens`.
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
