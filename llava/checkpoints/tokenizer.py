"""Reading the tokenizer of a checkpoint, with the ids that it was trained with."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file, is_protobuf_available, is_sentencepiece_available

from llava.checkpoints.named_tokens import add_named, named_tokens, special_tokens
from llava.checkpoints.sentencepiece_model import build_tokenizer, merged_by_id, read_sentencepiece, shape_spaces
from llava.checkpoints.settings_files import ADVICE, in_short
from llava.checkpoints.tokenizer_probes import different_graphemes, first_difference
from llava.checkpoints.transformers_format import is_hf_config
from llava.common.json_files import read_object
from llava.model.llava_config import LlavaConfig

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


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
        options: of transformers' `from_pretrained`.

    Raises:
        ValueError: if there is none, it cannot be read, or it gives other ids than the SentencePiece model beside it.
    """
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
        extra = _added_file(name, options)
        special = special_tokens(settings, _special_map(name, options), proto)
        add_named(backend, named_tokens(settings, whole, extra, special), proto)
    except ValueError as error:
        raise OtherIdsError(f"The tokenizer.model in {str(name)!r} cannot be rebuilt: {error}.") from error
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        name, tokenizer_object=backend, vocab_file="", legacy=legacy,
        **{"add_bos_token": settings.get("add_bos_token", True), "add_eos_token": settings.get("add_eos_token", False)},
        **{**special, **options},
    )  # fmt: skip
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
                "model was trained with those of tokenizer.json, move tokenizer.model elsewhere.", name, found,
            )  # fmt: skip
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
            name, "; ".join(kinds),
        )  # fmt: skip


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
        str(name), file, cache_dir=options.get("cache_dir"), _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)


def _added_file(name: str | Path, options: dict[str, Any]) -> dict[str, int]:
    path = _file_of(name, "added_tokens.json", options)
    return {} if path is None else read_object(path, ADVICE)


def _special_map(name: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    path = _file_of(name, "special_tokens_map.json", options)
    return {} if path is None else read_object(path, ADVICE)


def _config_of(name: str | Path) -> dict[str, Any]:
    try:
        return dict(LlavaConfig.get_config_dict(name)[0])
    except OSError:  # adapters may come without one
        return {}
