"""Numeric flags of command lines: the range that each accepts, and the error for any other value."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

from llava.common.shown import shown

LARGEST_COUNT = 2**31 - 1
LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger seed."""
MOST_PROCESSES = 1024


@dataclass(frozen=True)
class Numbers:
    """The numbers that a flag accepts; as the `type` of argparse it reads one and refuses all others.

    NaN is never accepted, and infinity lies in no range.

    Attributes:
        smallest: the smallest of them.
        largest: the largest of them.
        whole: whether only whole numbers are accepted. `2.0` is whole where the flag itself holds real numbers.
        above: whether `smallest` itself is refused.
        below: whether `largest` itself is refused.
        shares: whether numbers between 0 and 1 are accepted as well, as shares.
        checked_later: whether the `type` leaves finite numbers of a usual size to the program's own check, which names
            the flag in its own words.
        also: single values that are accepted besides, each with what it stands for.
    """

    smallest: float
    largest: float
    whole: bool = True
    above: bool = False
    below: bool = False
    shares: bool = False
    also: tuple[tuple[float, str], ...] = ()
    checked_later: bool = False

    def __contains__(self, value: object) -> bool:
        """Whether a number is accepted."""
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            return False
        if any(value == single for single, _ in self.also) or (self.shares and 0 < value < 1):
            return True
        over = value > self.smallest if self.above else value >= self.smallest
        under = value < self.largest if self.below else value <= self.largest
        return over and under and (not self.whole or isinstance(value, int) or value.is_integer())

    def __str__(self) -> str:
        """What is accepted, in words: `a whole number from 1 to 2147483647, or -1 (for all)`."""
        kind = "a whole number" if self.whole else "a number"
        first = "above" if self.above else "from"
        last = "to below" if self.below else "to"
        words = [f"{kind} {first} {_plain(self.smallest)} {last} {_plain(self.largest)}"]
        words = [_plain(self.smallest)] if self.smallest == self.largest else words
        words += ["a share between 0 and 1"] if self.shares else []
        words += [f"{_plain(value)} ({meaning})" for value, meaning in self.also]
        return ", or ".join(words)

    def __call__(self, text: str) -> float:
        """Read a value of a command line.

        Raises:
            argparse.ArgumentTypeError: if it is no number, or not in the range; names it and the range.
        """
        try:
            value: float = int(text) if self.whole and not self.shares else float(text)
        except ValueError:
            value = math.nan
        left = self.checked_later and abs(value) <= LARGEST_COUNT
        if value not in self and not left:
            raise argparse.ArgumentTypeError(f"it is {shown(text)}; it must be {self}")
        return value


def budget_number(text: str) -> int | float:
    """A number of tokens, or a share of them, of a command line: whole numbers as such; `V2VConfig` says which may be.

    Raises:
        argparse.ArgumentTypeError: if it is no number.
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise argparse.ArgumentTypeError(
        f"it is {shown(text)}; it must be a number of tokens such as 300, or a share of them such as 0.65"
    )


def count(smallest: int = 1, largest: int = LARGEST_COUNT) -> Numbers:
    """Whole numbers from `smallest` on."""
    return Numbers(smallest, largest)


def share(*, above: bool = False, below: bool = False) -> Numbers:
    """Numbers from 0 to 1, with or without the ends."""
    return Numbers(0, 1, whole=False, above=above, below=below)


def positive(largest: float) -> Numbers:
    """Numbers above 0."""
    return Numbers(0, largest, whole=False, above=True)


def not_negative(largest: float) -> Numbers:
    """Numbers from 0 on."""
    return Numbers(0, largest, whole=False)


def checked_later(accepted: Numbers) -> Numbers:
    """The same numbers, where a program has a check of its own."""
    return replace(accepted, checked_later=True)


SEED = Numbers(0, LARGEST_SEED)


def require_number(flag: str, value: float | None, accepted: Numbers) -> None:
    """Refuse a number that a flag does not accept; None, a flag that was not given, passes.

    Raises:
        ValueError: names the flag, the value and the range.
    """
    if value is not None and value not in accepted:
        raise ValueError(f"--{flag} is {shown(value)}; it must be {accepted}.")


def require_at_least(name: str, value: int | None, smallest: int) -> None:
    """Refuse a number that is too small; None passes.

    Raises:
        ValueError: names the flag.
    """
    if value is not None and value < smallest:
        raise ValueError(f"--{name} is {value}; it must be {smallest} or more.")


def _plain(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e10 else f"{value:g}"
