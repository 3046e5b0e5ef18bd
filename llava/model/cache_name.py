"""What transformers calls the KV cache: `past_key_values` up to 5.23, `cache` from 5.24 on.

This project's own methods take it by either name, whichever transformers is installed; what it hands to transformers
and reads from its outputs goes by the name that is known there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from transformers.models.llama.modeling_llama import LlamaDecoderLayer

OLD, NEW = "past_key_values", "cache"
CACHE = NEW if NEW in inspect.signature(LlamaDecoderLayer.forward).parameters else OLD
"""The name that the installed transformers knows."""

_Method = TypeVar("_Method", bound=Callable[..., Any])


def as_named(arguments: dict[str, Any], name: str = CACHE) -> dict[str, Any]:
    """The same arguments, with a cache that goes by either name under one.

    Args:
        arguments: arguments of the call by name.
        name: `past_key_values` or `cache`.

    Raises:
        ValueError: if two caches are given.
    """
    other = OLD if name == NEW else NEW
    if other not in arguments:
        return arguments
    given = {key: value for key, value in arguments.items() if key != other}
    if arguments[other] is None:
        return given
    if given.get(name) is not None:
        raise ValueError("Both past_key_values and cache are given, which are two names of one thing; leave one out.")
    return given | {name: arguments[other]}


def cache_name_of(signature: inspect.Signature) -> str:
    """The name under which a function takes the cache, which a class of another package may have kept or not."""
    return next((name for name in (CACHE, OLD, NEW) if name in signature.parameters), CACHE)


def takes_either_name(method: _Method) -> _Method:
    """Let a method with the argument `past_key_values` take it as `cache`, too."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **as_named(kwargs, OLD))

    return wrapped  # type: ignore[return-value]


def named(cache: Any) -> dict[str, Any]:
    """The cache as an argument for transformers."""
    return {CACHE: cache}


def cache_of(output: Any) -> Any:
    """The cache that an output of transformers, or one derived from it, carries."""
    return getattr(output, CACHE)
