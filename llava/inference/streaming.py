"""Reading an answer while it is being generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer

from llava.inference.growing_text import beginning_of


class StopWhenAsked(StoppingCriteria):
    """Ends a generation at the next token after `ask`."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """End it."""
        self._asked.set()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor | None, **kwargs: Any) -> Tensor:
        """Whether the rows [B, T] are finished, bool [B]."""
        return torch.full((len(input_ids),), self._asked.is_set(), dtype=torch.bool, device=input_ids.device)


class Answering:
    """One call of `generate` in a thread of its own; iterating over it gives the text as it comes.

    Leaving the iteration early ends the generation at its next token. Nothing is left running either way.

    Args:
        generate: called once, with keywords for `generate` of transformers: `streamer`, which it may not use, and the
            criterion that ends it early as `stop_when`.
        tokenizer: tokenizer of the model.
        stop: text that ends an answer and is not shown; None where a token of the model does.

    Attributes:
        output: what `generate` returned, None before the end.
    """

    def __init__(self, generate: Callable[..., Any], tokenizer: PreTrainedTokenizerBase, stop: str | None) -> None:
        self.output: Any = None
        self._generate = generate
        self._stop = stop
        self._stop_when = StopWhenAsked()
        self._streamer: Any = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        """Pieces of text.

        Raises:
            Exception: whatever `generate` raised.
        """
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield from before(self._streamer, self._stop)
        finally:
            self._stop_when.ask()
            thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            self.output = self._generate(streamer=self._streamer, stop_when=self._stop_when)
        except BaseException as error:  # raised again where the text is read
            self._error = error
        finally:
            self._streamer.on_finalized_text("", stream_end=True)


def before(pieces: Iterable[str], stop: str | None) -> Iterator[str]:
    """Text up to a stop string, however the pieces cut it; leading blanks are left out.

    A piece that may be the beginning of the stop string waits for the next one.
    """
    held, started = "", False
    for piece in pieces:
        held += piece
        if not started:
            held = held.lstrip()
            started = bool(held)
        if stop and stop in held:
            held = held[: held.index(stop)]
            break
        sure = len(held) - beginning_of(stop or "", held)
        if sure:
            yield held[:sure]
            held = held[sure:]
    if held:
        yield held
