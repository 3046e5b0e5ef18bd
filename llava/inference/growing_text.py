"""Text of an answer while its tokens come: what can be shown already, and whether words that end it have come."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"
"""What a tokenizer writes for the bytes of a character that are not all there yet."""


class GrowingText:
    """The text of one answer, token by token; what is shown never changes afterwards.

    Blanks in front and at the end are no part of an answer, so that blanks wait for what follows. So do the bytes of a
    character that is not whole, and whatever may be the beginning of words that end the answer.

    Args:
        tokenizer: tokenizer of the model.
        stops: words that end the answer and are not shown.

    Attributes:
        ended: whether such words have come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self.ended = False
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._first = 0  # of the tokens that are decoded together, for blanks depend on the token before
        self._decoded = 0  # tokens whose text stands in `_text`
        self._text = ""
        self._shown = 0

    def add(self, token: int) -> str:
        """Take a token; returns what can be shown now and could not before."""
        self._ids.append(token)
        known = self._decode(self._ids[self._first : self._decoded])
        longer = self._decode(self._ids[self._first :])
        if len(longer) > len(known) and not longer.endswith(_UNFINISHED):
            self._text += longer[len(known) :]
            self._first, self._decoded = self._decoded, len(self._ids)
        self._look_for_stops()
        return self._newly_shown(0 if self.ended else self._unsure())

    def end(self) -> str:
        """The rest, when no more tokens come."""
        if not self.ended:
            known = self._decode(self._ids[self._first : self._decoded])
            self._text += self._decode(self._ids[self._first :])[len(known) :]
            self._decoded = self._first = len(self._ids)
            self._look_for_stops()
        return self._newly_shown(0)

    @property
    def text(self) -> str:
        """All that has been shown."""
        return self._text[: self._shown].lstrip()

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _look_for_stops(self) -> None:
        places = [place for stop in self._stops if (place := self._text.find(stop, self._shown)) >= 0]
        if places:
            self._text, self.ended = self._text[: min(places)], True

    def _unsure(self) -> int:
        """Characters at the end that may be the beginning of a stop."""
        return max((beginning_of(stop, self._text) for stop in self._stops), default=0)

    def _newly_shown(self, unsure: int) -> str:
        sure = self._text[: len(self._text) - unsure].rstrip()
        before = self._text[: self._shown]
        if len(sure) <= len(before):
            return ""
        self._shown = len(sure)
        new = sure[len(before) :]
        return new if before.strip() else new.lstrip()


def beginning_of(stop: str, text: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((length for length in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:length])), 0)
