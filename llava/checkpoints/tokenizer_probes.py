"""Texts at which conversions of a SentencePiece model go wrong, and the first at which a tokenizer differs from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

_SPACES = (
    "a  b", "a   b", " a", "  a", "   a", "a ", "a  ", " ", "  ", *("a" + " " * run + "b" for run in range(4, 41)),
    "a\n    b\n        c", "def f(x):\n    return  x\n", "    - a list\n    - of  two", "x = [1,  2]\n\n\n",
    "\n", "\n\nWhat is this?", "\tx", "a\t\tb", "\r\nx",
)  # fmt: skip
_WORDS = ("What is 12,345.67 + 0.5?", "don't", "USER: Where is  it? ASSISTANT: here.", "-" * 40, "<0x0A>", "\u0001")
_SCRIPTS = (
    "naïve café", "ﬁ ①", "你好，世界", "日本語の テキスト", "한국어 문장", "Привет, мир", "مرحبا",
    "🙂", "a 🙂 b", "👩\u200d👩\u200d👧", "𝔘𝔫𝔦",
)  # fmt: skip
PROBES = (*_SPACES, *_WORDS, *_SCRIPTS)
_SAMPLE = 128
_GRAPHEMES = {
    "combining marks behind what it changes": ("Ⅷ\u0301", "ﬁ\u0301", "X\u0301", "½\u0308", "\u3000\u0301", "▁\u0301Z"),
    "joiners and variation selectors behind what it changes": ("\xa0\u200d", "X\u200d", "A\ufe0f", "①\ufe0f"),
    "letters written in parts (kana with sound marks, Hangul)": ("か\u3099", "ｶﾞ", "\u1112\u1161\u11ab", "\u1100\u1161"),
}


def first_difference(pieces: bytes, tokenizer: PreTrainedTokenizerBase | Tokenizer) -> str | None:
    """How a tokenizer first differs from a SentencePiece model, as half a sentence; None where it does not.

    Args:
        pieces: content of `tokenizer.model`.
        tokenizer: what should give the same ids, without special tokens.

    Raises:
        ImportError: without sentencepiece.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=pieces)
    named = _named(tokenizer)
    for text in (*PROBES, *_from_vocabulary(model)):
        if any(token in text for token in named):
            continue
        wanted, got = model.encode(text), _ids(tokenizer, text)
        if wanted != got:
            return f"{text!r} becomes {_spell(model, got)}, where SentencePiece gives {_spell(model, wanted)}"
    return None


def different_graphemes(pieces: bytes, tokenizer: PreTrainedTokenizerBase | Tokenizer) -> list[str]:
    """Kinds of combined characters to which a tokenizer gives other ids than a SentencePiece model, in words.

    The `tokenizers` library applies a model's normalisation map to whole combined characters, and drops what follows
    the part that the map knows; SentencePiece goes through it character by character.

    Args:
        pieces: content of `tokenizer.model`.
        tokenizer: what should give the same ids, without special tokens.

    Raises:
        ImportError: without sentencepiece.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=pieces)
    return [
        f"{kind} (such as {different[0]!a})"
        for kind, texts in _GRAPHEMES.items()
        if (different := [text for text in texts if model.encode(text) != _ids(tokenizer, text)])
    ]


def _from_vocabulary(model: Any) -> Iterator[str]:
    """Pieces from all over the vocabulary, three by three."""
    size = model.get_piece_size()
    usual = [i for i in range(size) if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))]
    chosen = [model.id_to_piece(i).replace("▁", " ") for i in usual[:: max(1, len(usual) // (3 * _SAMPLE))]]
    for start in range(0, len(chosen), 3):
        yield "".join(chosen[start : start + 3])


def _named(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> list[str]:
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    return [token.content for token in backend.get_added_tokens_decoder().values() if token.content.strip()]


def _ids(tokenizer: PreTrainedTokenizerBase | Tokenizer, text: str) -> list[int]:
    if isinstance(tokenizer, Tokenizer):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _spell(model: Any, ids: list[int]) -> str:
    size = model.get_piece_size()
    shown = [model.id_to_piece(i) if i < size else f"id {i}" for i in ids[:12]]
    return repr(" ".join(shown) + (" ..." if len(ids) > 12 else ""))
