"""Reading the tokenizer of a checkpoint, with the ids that it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from llava.model.hf_format import is_hf_config
from llava.model.language_model.llava_llama import LlavaConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def read_tokenizer(name: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name.

    `AutoTokenizer` alone takes LLaVA's own `model_type` "llava" for transformers' LLaVA and then reads a
    `tokenizer.model` without Llama's rules: other ids, without a word. Here the class that the tokenizer names decides.

    Args:
        name: folder or hub name.
        options: of transformers' `from_pretrained`.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        if _is_bare_sentencepiece(name):
            return LlamaTokenizer.from_pretrained(name, **options)
        ambiguous = not is_hf_config(_config_of(name))
        return AutoTokenizer.from_pretrained(name, **({"config": LlavaConfig()} if ambiguous else {}), **options)
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(
            f"The tokenizer of {str(name)!r} cannot be read. A tokenizer.model needs the packages sentencepiece and "
            f"protobuf, in versions that fit each other; a tokenizer.json needs neither. ({str(error).splitlines()[0]})"
        ) from error


def _config_of(name: str | Path) -> dict[str, Any]:
    try:
        return dict(LlavaConfig.get_config_dict(name)[0])
    except OSError:  # adapters may come without one
        return {}


def _is_bare_sentencepiece(name: str | Path) -> bool:
    """Whether a folder holds a `tokenizer.model` and nothing that says whose: the models opened here are Llamas."""
    folder = Path(name)
    if not (folder / "tokenizer.model").is_file() or (folder / "tokenizer.json").is_file():
        return False
    return get_tokenizer_config(str(folder)).get("tokenizer_class") is None
