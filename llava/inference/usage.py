"""Cost of an answer: visual tokens in each decoder layer, and bytes of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import DynamicCache

from llava.cost.flops import average_visual_tokens, describe
from llava.model.staged_cache import key_value_bytes


@dataclass(frozen=True)
class Usage:
    """Cost of one answer, read from its cache.

    Attributes:
        visual_tokens: visual tokens that each decoder layer cached.
        patches: what they would be without compression.
        text_tokens: tokens of prompt and answer beside them.
        kv_bytes: bytes of all cached keys and values.
    """

    visual_tokens: tuple[int, ...]
    patches: int
    text_tokens: int
    kv_bytes: int

    @classmethod
    def of(cls, cache: DynamicCache, text_tokens: int, patches: int) -> Usage:
        """Read a cache of one row, filled by one request; numbers as in the attributes."""
        visual = tuple(layer.get_seq_length() - text_tokens for layer in cache.layers)
        return cls(visual, patches, text_tokens, key_value_bytes(cache))

    @property
    def average(self) -> float:
        """Visual tokens that a layer saw, in the mean."""
        return average_visual_tokens(self.visual_tokens)

    def __str__(self) -> str:
        """Two lines for a terminal."""
        memory = f"KV cache {size(self.kv_bytes)}, {self.text_tokens} text tokens"
        if not self.patches:
            return f"no visual tokens; {memory}"
        saved = 1 - self.average / self.patches
        return (
            f"visual tokens by layer {describe(self.visual_tokens)}\n"
            f"average {self.average:.2f} of {self.patches} ({saved:.1%} fewer); {memory}"
        )


def size(count: int) -> str:
    """Bytes in the largest unit that they fill."""
    units = ("bytes", "KiB", "MiB", "GiB")
    step = next((step for step in (3, 2, 1) if count >= 1024**step), 0)
    return f"{count / 1024**step:.{1 if step else 0}f} {units[step]}"
