"""What the page knows of each visitor: pictures to be shown, and two conversations, one a budget. Nothing is shared."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from typing import Any

from llava.compression.config import CompressionConfig
from llava.inference.chat import Chat, Shown
from llava.inference.engine import Engine
from llava.inference.generation import GenerationSettings
from llava.serve.web.measured_answer import AnswerClock, MeasuredAnswer, media_of
from llava.serve.web.shown_messages import ChatMessage

MOST_VISITORS = 64
"""Visitors whose conversations are kept; of more, the one who has been idle longest loses his."""
MOST_SHOWN = 16
"""Pictures and videos that one question may show."""


class Side:
    """One of the two conversations.

    Args:
        engine: engine that answers.
        settings: settings of generation.

    Attributes:
        messages: the conversation as the page shows it.
        measured: what the last answer took; None before it.
        text: the last answer, also while it is given.
    """

    def __init__(self, engine: Engine, settings: GenerationSettings) -> None:
        self.clock = AnswerClock()
        more = {"stopping_criteria": [self.clock]}
        own = GenerationSettings(
            settings.temperature, settings.top_p, settings.num_beams, settings.max_new_tokens, more=more
        )
        self.chat = Chat.over(engine, own)
        self.messages: list[ChatMessage] = []
        self.measured: MeasuredAnswer | None = None
        self.text = ""

    def ask(self, question: str, shown: Sequence[Shown], compression: CompressionConfig) -> Generator[str, None, None]:
        """Ask under a budget; gives the whole answer so far, again and again.

        Raises:
            ValueError: as `Chat.ask`.
        """
        self.measured, self.text = None, ""
        self.chat.set_compression(compression)
        pieces = self.chat.ask(question, shown)
        self.clock.start()
        for piece in pieces:
            self.text += piece
            yield self.text
        usage = self.chat.usage
        if usage is not None:
            self.measured = MeasuredAnswer.of(self.chat.model, compression, usage, self.clock, media_of(self.chat))


class Visitor:
    """One browser tab.

    Attributes:
        pending: pictures and videos to be shown with the next question.
        sides: the conversation under each budget; what they are shown and asked is the same.
        stopping: whether the answers that are being given are to end.
    """

    def __init__(self, engine: Engine, settings: GenerationSettings) -> None:
        self._engine, self._settings = engine, settings
        self.pending: list[Shown] = []
        self.stopping = False
        self._begin()

    def _begin(self) -> None:
        """New conversations; who still answers in one of the old ones finds that `sides` are others."""
        self.sides = (Side(self._engine, self._settings), Side(self._engine, self._settings))

    def add(self, shown: Shown) -> None:
        """Show one more with the next question.

        Raises:
            ValueError: if there are too many.
        """
        if len(self.pending) >= MOST_SHOWN:
            raise ValueError(
                f"{MOST_SHOWN} pictures and videos are waiting already, the most that one question may show."
            )
        self.pending = [*self.pending, shown]

    def align(self, count: int) -> bool:
        """Begin anew, with the same pictures, where one of the conversations lacks turns of another.

        Args:
            count: how many sides are asked next.

        Returns:
            whether that was so.
        """
        longest = max(self.sides[:count], key=lambda side: len(side.chat.turns))
        if all(len(side.chat.turns) == len(longest.chat.turns) for side in self.sides[:count]):
            return False
        self.pending = [*longest.chat.images, *self.pending][-MOST_SHOWN:]
        self._begin()
        return True

    def forget(self) -> None:
        """Begin anew, without pictures."""
        self.stopping = True
        self.pending = []
        self._begin()


class Visitors:
    """The visitors by the random name that gradio gives a browser's tab.

    Args:
        engine: engine that answers all of them.
        settings: settings of generation.
    """

    def __init__(self, engine: Engine, settings: GenerationSettings) -> None:
        self._engine, self._settings = engine, settings
        self._known: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, request: Any) -> Visitor:
        """The visitor whose browser asks.

        Args:
            request: gradio's `Request`.

        Raises:
            ValueError: if it does not say whose it is.
        """
        name = str(getattr(request, "session_hash", None) or "")
        if not name:
            raise ValueError("The browser does not say which tab asks; load the page once more.")
        with self._lock:
            visitor = self._known.get(name)
            if visitor is None:
                visitor = self._known[name] = Visitor(self._engine, self._settings)
            self._known.move_to_end(name)
            while len(self._known) > MOST_VISITORS:
                self._known.popitem(last=False)
        return visitor

    def leave(self, request: Any) -> None:
        """Forget a visitor whose tab was closed."""
        with self._lock:
            visitor = self._known.pop(str(getattr(request, "session_hash", "")), None)
        if visitor is not None:
            visitor.stopping = True
            visitor.pending = []
