"""User-defined symbols of a SentencePiece BPE model, found as SentencePiece finds them: as one piece, inside a text.

An added token would be cut out before the space is put in front of a text, so that a text which begins with a symbol
lost that space. Here the spaces come first, then symbols are cut out, and a stretch that is a piece is that piece
(`ignore_merges`). So that no stretch spells a control or byte piece, which SentencePiece never finds in a text, such
a stretch is cut at a place where SentencePiece cuts it too.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from llava.checkpoints.sentencepiece_model import SPACE, USER_DEFINED

_NORMAL, _UNUSED = 1, 5


def find_symbols(tokenizer: Tokenizer, proto: Any, symbols: list[str]) -> None:
    """Make a tokenizer of `build_tokenizer` find symbols in a text.

    Args:
        tokenizer: with a BPE model; changed in place.
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
