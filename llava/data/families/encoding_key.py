"""The cache key of what a family makes of conversations: it stands for the code, too."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava import conversation, mm_utils
from llava.data import chat_template, mark_words, plain_text, records, tokenization, video_marks
from llava.data.cache import digest_text
from llava.data.store import source_of

_SHARED = (chat_template, conversation, mark_words, mm_utils, plain_text, records, tokenization, video_marks)


def encoding_key(family: type, facts: Sequence[str]) -> str | None:
    """Key of facts, and of the code of a class, of those it derives from, and of what all families share.

    None where one of them has no source text, as a class that was typed into an interpreter.
    """
    kinds = [kind for kind in family.__mro__ if kind is not object]
    try:
        modules = [sys.modules[name] for name in dict.fromkeys(kind.__module__ for kind in kinds)]
        code = source_of(*modules, *_SHARED)
    except (KeyError, OSError, TypeError):
        return None
    return digest_text([*facts, *(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds), code])
