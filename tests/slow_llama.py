"""Ids of the slow `LlamaTokenizer` of transformers 4.31 to 4.57 with which LLaVA was trained, on sentencepiece alone.

Written from the description in its documentation: text is cut at special tokens; each stretch goes to SentencePiece.
With `legacy` each stretch is a text of its own. Without it only the whole text gets a leading space, and a stretch is
encoded behind a harmless word, so that SentencePiece puts no space of its own before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def published_vocabulary() -> Path:
    """The 32,000 pieces of Mistral 7B's first tokenizer, which the package `mistral-common` carries.

    Its spaces are scored as those of Llama are: below everything else, all alike.
    """
    import importlib.util

    found = importlib.util.find_spec("mistral_common")
    assert found is not None and found.submodule_search_locations, "the tests need mistral-common; see constraints.txt"
    return Path(found.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"


def slow_ids(model: Any, text: str, special: Mapping[str, int], legacy: bool) -> list[int]:
    """Ids of a text without BOS.

    Args:
        model: a SentencePieceProcessor.
        text: may hold special tokens.
        special: tokens that are cut out, with their ids.
        legacy: as in `tokenizer_config.json`.
    """
    ids: list[int] = []
    position = 0
    for stretch in re.split("(" + "|".join(map(re.escape, special)) + ")", text):
        if stretch in special:
            ids.append(special[stretch])
        elif stretch:
            ids += model.encode(stretch) if legacy or position == 0 else _inside(model, stretch)
        position += len(stretch)
    return ids


def _inside(model: Any, stretch: str) -> list[int]:
    """Ids of a stretch that follows other text: what a text that begins with a byte gains by it."""
    before = model.encode("\x01")
    ids = model.encode("\x01" + stretch)
    assert ids[: len(before)] == before
    return list(ids[len(before) :])
