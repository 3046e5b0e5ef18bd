"""Flags of other programs that train LLaVAs, and of older transformers releases, that this one does not honour.

LLaVA's own flags are in `llava.train.arguments`. One that stands here is an error in words unless it is switched off.
"""

from __future__ import annotations

from collections.abc import Iterable

from llava.common.yaml_files import by_name, table_beside

FOREIGN: dict[str, str] = {}
for _reasons in table_beside(__file__).values():
    FOREIGN |= by_name(_reasons)
# Defaults of other programs and of older transformers releases, beside the values that switch anything off.
_FORMER_DEFAULTS = {"past_index": "-1", "ray_scope": "last", "fp16_opt_level": "o1", "mm_newline_position": "grid"}
_OFF = ("", "0", "0.0", "false", "no", "none", "null", "auto")


def is_switched_off(name: str, values: Iterable[str]) -> bool:
    """Whether a flag of `FOREIGN` asks for nothing.

    Raises:
        ValueError: if it asks for something; says why that cannot be had.
    """
    given = list(values)
    if given and all(value.lower() in (*_OFF, _FORMER_DEFAULTS.get(name, "")) for value in given):
        return True
    raise ValueError(f"--{' '.join([name, *given])} is not supported: {FOREIGN[name]}.")
