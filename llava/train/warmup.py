"""The length of the warm-up, which LLaVA's scripts and transformers' earlier releases give by two flags."""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)

Flag = tuple[str, list[str]]


def one_warmup(flags: Sequence[Flag]) -> list[Flag]:
    """The same flags with a single `--warmup_steps` for what `--warmup_ratio` and `--warmup_steps` say together.

    As in transformers before release 5, where both had a field: a number of steps above zero wins over a share of
    them, and zero steps leave the share alone. Below 1 the value of `--warmup_steps` is a share too, and of several
    shares, or several numbers, the last one counts. Where one flag has no effect beside the other, the log says so.

    Args:
        flags: names without dashes, and their values, in the order of the command line.

    Raises:
        ValueError: if a value is not a number in range.
    """
    given = [(name, _number(name, values)) for name, values in flags if name in ("warmup_ratio", "warmup_steps")]
    if not any(name == "warmup_ratio" for name, _ in given):
        return list(flags)
    last = dict(given)
    place = {name: number for number, (name, _) in enumerate(given)}
    ratio, steps = last["warmup_ratio"], last.get("warmup_steps", 0.0)
    is_later_share = 0 < steps < 1 and place["warmup_steps"] > place["warmup_ratio"]
    value = steps if steps >= 1 or is_later_share else ratio
    if "warmup_steps" in last and value != steps:
        logger.warning("--warmup_ratio %g counts; --warmup_steps %g has no effect beside it.", ratio, steps)
    elif value != ratio:
        logger.warning("--warmup_steps %g counts; --warmup_ratio %g has no effect beside it.", steps, ratio)
    else:
        logger.info("--warmup_ratio is now --warmup_steps, a share of all steps where it is below 1.")
    rest = [flag for flag in flags if flag[0] not in last]
    return [*rest, ("warmup_steps", [str(value)])]


def _number(name: str, values: Sequence[str]) -> float:
    try:
        value = float(values[0])
    except (IndexError, ValueError):
        value = -1.0
    if not 0 <= value < (1 if name == "warmup_ratio" else float("inf")):
        accepted = "a share from 0 to below 1" if name == "warmup_ratio" else "a number of steps, or a share below 1"
        raise ValueError(f"--{name} is {' '.join(values) or 'empty'}; it must be {accepted}.")
    return value
