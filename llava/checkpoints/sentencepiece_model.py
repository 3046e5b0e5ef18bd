"""A SentencePiece model as a tokenizer of the `tokenizers` library that gives SentencePiece's own ids.

transformers' conversion orders the merges of a BPE model by the ids of their pieces. SentencePiece merges the pair
whose piece has the highest *score*, and the leftmost of those with equal scores; ids and scores part ways at runs of
spaces, which Llama's vocabulary lists first and scores last. The conversion also lets pieces for bytes and control
pieces be spelled by text, and `Metaspace` swallows the first of a text's leading spaces. What is built here does none
of this. Sources: sentencepiece 0.2 (`bpe_model.cc`, `normalizer.cc`) and the slow `LlamaTokenizer` of transformers
4.31 to 4.57, with which LLaVA was trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import SentencePieceExtractor

SPACE = "▁"
_UNIGRAM, _BPE = 1, 2
_NORMAL, USER_DEFINED, _UNUSED = 1, 4, 5  # types of pieces; others are control, unknown and byte
_WRITTEN = (_NORMAL, USER_DEFINED, _UNUSED)
_NEVER_CHOSEN = -1e5  # score of a piece that no text spells


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
        vocab=vocabulary, merges=merges_of(proto), unk_token=proto.trainer_spec.unk_piece or "<unk>", fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )  # fmt: skip


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
