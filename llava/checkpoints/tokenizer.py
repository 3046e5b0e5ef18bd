"""Reading the tokenizer of a checkpoint, with the ids that it was trained with."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file, is_protobuf_available, is_sentencepiece_available

from llava.checkpoints.sentencepiece_model import (
    add_named,
    build_tokenizer,
    merged_by_id,
    named_tokens,
    read_sentencepiece,
    shape_spaces,
    special_tokens,
)
from llava.checkpoints.settings_files import ADVICE
from llava.checkpoints.transformers_format import is_hf_config
from llava.common.json_files import read_object
from llava.common.outside_files import in_short
from llava.common.path_flags import require_model
from llava.conversation import SeparatorStyle, get_template
from llava.model.llava_config import LlavaConfig

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SPACES = (
    *(" " * run + "a" for run in range(1, 4)),
    *("a" * letters + " " * run for letters in (1, 0) for run in (1, 2)),
    *("a" + " " * run + "b" for run in range(2, 41)),
    "a\n    b\n        c",
    "def f(x):\n    return  x\n",
    "    - a list\n    - of  two",
    "x = [1,  2]\n\n\n",
    "\n",
    "\n\nWhat is this?",
    "\tx",
    "a\t\tb",
    "\r\nx",
)
_WORDS = ("What is 12,345.67 + 0.5?", "don't", "USER: Where is  it? ASSISTANT: here.", "-" * 40, "<0x0A>", "\u0001")
_SCRIPTS = (
    "naïve café",
    "ﬁ ①",
    "你好，世界",
    "日本語の テキスト",
    "한국어 문장",
    "Привет, мир",
    "مرحبا",
    "🙂",
    "a 🙂 b",
    "👩\u200d👩\u200d👧",
    "𝔘𝔫𝔦",
)
PROBES = (*_SPACES, *_WORDS, *_SCRIPTS)
_SAMPLE = 128
_GRAPHEMES = {
    "combining marks behind what it changes": ("Ⅷ\u0301", "ﬁ\u0301", "X\u0301", "½\u0308", "\u3000\u0301", "▁\u0301Z"),
    "joiners and variation selectors behind what it changes": ("\xa0\u200d", "X\u200d", "A\ufe0f", "①\ufe0f"),
    "letters written in parts (kana with sound marks, Hangul)": ("か\u3099", "ｶﾞ", "\u1112\u1161\u11ab", "\u1100\u1161"),
}
_ANSWER = "yes"


class OtherIdsError(ValueError):
    """A tokenizer would give other ids than the SentencePiece model of its folder."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def read_tokenizer(name: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name.

    Where there is a `tokenizer.model` of a Llama, it decides: the ids are SentencePiece's own, which is how LLaVA
    tokenises, and a `tokenizer.json` beside it that gives others is named in a warning. A Llama's `tokenizer.json`
    alone keeps its merges and gets SentencePiece's treatment of spaces. Anything else is what `AutoTokenizer` makes
    of it; LLaVA's own `model_type` "llava", which it would take for transformers' LLaVA, is kept from it.

    Args:
        name: folder or hub name.
        options: options of transformers' `from_pretrained`.

    Raises:
        ValueError: if there is none, it cannot be read, or it gives other ids than the SentencePiece model beside it.
    """
    require_model(str(name))
    if Path(name).is_dir() and not has_tokenizer(Path(name)):
        raise ValueError(
            f"{str(name)!r} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); copy that of the language model there."
        )
    try:
        settings = dict(get_tokenizer_config(str(name), cache_dir=options.get("cache_dir")))
        pieces, whole = (_file_of(name, file, options) for file in ("tokenizer.model", "tokenizer.json"))
        if pieces is not None and whole is not None and not (is_sentencepiece_available() and is_protobuf_available()):
            logger.warning("The tokenizer.json in %s is taken unchecked: sentencepiece or protobuf is missing.", name)
            pieces = None
        if pieces is not None and whole is not None and not _is_sentencepiece(pieces):
            pieces = None  # Llama 3 also calls its file of byte pairs tokenizer.model
        if pieces is not None and _is_llama(settings, alone=whole is None):
            return _from_pieces(name, pieces, whole, settings, options)
        ambiguous = not is_hf_config(_config_of(name))
        own = {"config": LlavaConfig()} if ambiguous else {}
        # Left out, it would ask at the terminal whether to run code that lies beside the tokenizer.
        tokenizer = _from_transformers(name, **own, **options, trust_remote_code=False)
        if type(tokenizer) is LlamaTokenizer:
            if pieces is not None:
                return _from_pieces(name, pieces, whole, settings, options)
            tokenizer = _with_spaces(name, tokenizer, settings, options)
    except OtherIdsError:
        raise
    except (ValueError, OSError, ImportError) as error:
        if "custom code" in str(error):
            raise ValueError(
                f"The tokenizer of {str(name)!r} is code that lies beside it (auto_map in tokenizer_config.json), and "
                "that is never run here; give a folder whose tokenizer_class is one of transformers'."
            ) from error
        raise ValueError(
            f"The tokenizer of {str(name)!r} cannot be read. A tokenizer.model needs the packages sentencepiece and "
            f"protobuf, in versions that fit each other; a tokenizer.json needs neither. ({in_short(error)})"
        ) from error
    if pieces is not None and type(tokenizer) is PreTrainedTokenizerFast:
        _require_same_ids(name, pieces, tokenizer)
    return tokenizer


def add_marks(tokenizer: PreTrainedTokenizerBase, *marks: str) -> None:
    """Add marks of images and videos behind the other tokens, where they are not there yet."""
    known = tokenizer.get_vocab()
    new = [AddedToken(mark, special=True, normalized=False) for mark in marks if mark not in known]
    tokenizer.add_tokens(new, special_tokens=True)


def _from_transformers(name: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **options)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # tokenizers raises Exception itself, and transformers what its code stumbles over
        raise ValueError(in_short(error)) from error
    return tokenizer


def _from_pieces(
    name: str | Path, pieces: Path, whole: Path | None, settings: dict[str, Any], options: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """A tokenizer with the ids of `tokenizer.model`; special and added tokens are those that the folder names."""
    proto = read_sentencepiece(pieces)
    legacy = settings.get("legacy") is not False  # as the slow LlamaTokenizer reads a configuration without it
    if not legacy and settings.get("add_prefix_space") is False:
        proto.normalizer_spec.add_dummy_prefix = False
    model = proto.SerializeToString()
    try:
        backend = build_tokenizer(proto, legacy)
        extra = _content_of(name, "added_tokens.json", options)
        special = special_tokens(settings, _content_of(name, "special_tokens_map.json", options), proto)
        add_named(backend, named_tokens(settings, whole, extra, special), proto)
    except ValueError as error:
        raise OtherIdsError(f"The tokenizer.model in {str(name)!r} cannot be rebuilt: {error}.") from error
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        name,
        tokenizer_object=backend,
        vocab_file="",
        legacy=legacy,
        **{"add_bos_token": settings.get("add_bos_token", True), "add_eos_token": settings.get("add_eos_token", False)},
        **{**special, **options},
    )
    tokenizer.vocab_file = str(pieces)
    found = first_difference(model, tokenizer)
    if found is not None:
        raise OtherIdsError(f"The tokenizer.model in {str(name)!r} cannot be rebuilt: {found}.")
    _name_other_graphemes(name, model, tokenizer)
    if whole is not None:
        found = first_difference(model, Tokenizer.from_file(str(whole)))
        if found is not None:
            logger.warning(
                "The tokenizer.json in %s is not its tokenizer.model: %s. The ids of tokenizer.model are used; if the "
                "model was trained with those of tokenizer.json, move tokenizer.model elsewhere.",
                name,
                found,
            )
    return tokenizer


def _with_spaces(
    name: str | Path, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], options: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """A Llama's `tokenizer.json` with SentencePiece's treatment of spaces; as it is where its merges are not its."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if merged_by_id(json.loads(backend.to_str())["model"]):
        logger.warning(
            "The tokenizer.json in %s orders its merges by the ids of their pieces, as transformers converts a "
            "SentencePiece model without its scores: runs of spaces may be split otherwise than the language model "
            "knows them. Put the tokenizer.model of the language model beside it, unless the model was trained so.",
            name,
        )
        return tokenizer
    shape_spaces(backend, bool(settings.get("legacy", False)), prefix=settings.get("add_prefix_space") is not False)
    return PreTrainedTokenizerFast.from_pretrained(name, tokenizer_object=backend, vocab_file="", **options)


def _require_same_ids(name: str | Path, pieces: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    found = first_difference(pieces.read_bytes(), tokenizer)
    if found is not None:
        raise OtherIdsError(
            f"The tokenizer.json in {str(name)!r} is not its tokenizer.model: {found}. Delete the one that the model "
            "was not trained with."
        )
    _name_other_graphemes(name, pieces.read_bytes(), tokenizer)


def _name_other_graphemes(name: str | Path, model: bytes, tokenizer: PreTrainedTokenizerBase) -> None:
    kinds = different_graphemes(model, tokenizer)
    if kinds:
        logger.warning(
            "The tokenizer.model in %s changes characters by a normalisation map, which cannot be rebuilt for every "
            "combined character: other ids than SentencePiece's are given to %s. Other texts "
            "that were tried have SentencePiece's.",
            name,
            "; ".join(kinds),
        )


def _is_sentencepiece(file: Path) -> bool:
    try:
        read_sentencepiece(file)
    except ValueError:
        return False
    return True


def _is_llama(settings: dict[str, Any], alone: bool) -> bool:
    """Whether a `tokenizer.model` is a Llama's; alone and with nothing that says whose, it is."""
    kind = settings.get("tokenizer_class")
    return alone if kind is None else kind.removesuffix("Fast") == "LlamaTokenizer"


def _file_of(name: str | Path, file: str, options: dict[str, Any]) -> Path | None:
    found = cached_file(
        str(name),
        file,
        cache_dir=options.get("cache_dir"),
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _content_of(name: str | Path, file: str, options: dict[str, Any]) -> dict[str, Any]:
    path = _file_of(name, file, options)
    return {} if path is None else read_object(path, ADVICE)


def _config_of(name: str | Path) -> dict[str, Any]:
    try:
        return dict(LlavaConfig.get_config_dict(name)[0])
    except OSError:  # adapters may come without one
        return {}


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
        expected, got = model.encode(text), _ids(tokenizer, text)
        if expected != got:
            return f"{text!r} becomes {_spell(model, got)}, where SentencePiece gives {_spell(model, expected)}"
    return None


def different_graphemes(pieces: bytes, tokenizer: PreTrainedTokenizerBase | Tokenizer) -> list[str]:
    """Kinds of combined characters to which a tokenizer gives other ids than a SentencePiece model, in words.

    The `tokenizers` library applies a model's normalisation map to whole combined characters, and drops what follows
    the part that the map knows; SentencePiece goes through it character by character. Arguments and errors as
    `first_difference`.
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


def stop_at_end_mark(generation: Any, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Add a template's end mark to `eos_token_id`, where it is an added token that a text spells by itself.

    Args:
        generation: the model's `generation_config`; changed in place.
        tokenizer: tokenizer of the model.
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
