"""What the page does: each function answers one event with the values of the components that change."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from llava.common.outside_files import in_words
from llava.common.shown import printable
from llava.compression.config import CompressionConfig
from llava.inference.chat import Shown
from llava.inference.engine import Engine
from llava.inference.question_text import check_question
from llava.serve.web.comparison import comparison_html
from llava.serve.web.example_questions import ExampleQuestion
from llava.serve.web.followed_prompt import FollowedPrompt
from llava.serve.web.measured_answer import timed_prefills
from llava.serve.web.offered_budgets import BY_HAND, OfferedBudgets, Sliders
from llava.serve.web.patch_view import patch_view_html
from llava.serve.web.shown_messages import ChatMessage, conversation_html, waiting_html
from llava.serve.web.uploads import UploadFolder
from llava.serve.web.visitors import Side, Visitor

logger = logging.getLogger(__name__)

LONGEST_QUESTION = 20_000
"""Characters of a question."""
REFRESH = 0.08
"""Seconds between two updates of an answer that is being given."""
MOST_TIMING = 1.5
"""Seconds after which prefills are not timed once more; slower ones are told as they were in the answer."""
ANSWERED = ("chat_0", "chat_1", "status", "question", "pictures", "comparison", "view_0", "view_1")
"""What a question changes: the conversations of both sides, what went wrong, the question, the pictures that wait, the
comparison, and the views of patches of both sides."""
_EXPECTED = (ValueError, OSError, RuntimeError, MemoryError)


class Handlers:
    """Answers to the events of the page.

    Args:
        engine: engine that answers questions.
        budgets: budgets that the page offers.
        examples: examples that it offers.
        folder: folder that uploads lie in.
    """

    def __init__(
        self, engine: Engine, budgets: OfferedBudgets, examples: Sequence[ExampleQuestion], folder: UploadFolder
    ) -> None:
        self.engine = engine
        self.budgets = budgets
        self.examples = examples
        self.folder = folder

    # === Budgets ===

    def named(self, name: str, *values: Any) -> list[Any]:
        """A budget was chosen by name: the sentence about it, and where the sliders stand then."""
        try:
            config = self.budgets.chosen(name, Sliders.at(values))
            return [fits(self.budgets.in_words(config)), *self.budgets.sliders_of(config).values()]
        except ValueError as error:
            return [wrong(error), *values]

    def moved(self, *values: Any) -> tuple[str, str]:
        """A slider was moved: the name of what is chosen now, and the sentence about it."""
        try:
            return BY_HAND, fits(self.budgets.in_words(self.budgets.by_hand(Sliders.at(values))))
        except ValueError as error:
            return BY_HAND, wrong(error)

    # === Pictures ===

    def upload(self, visitor: Visitor, names: Sequence[str] | str | None) -> tuple[None, str, str]:
        """Files were uploaded: an empty control again, the pictures that wait, and what was refused."""
        problems: list[str] = []
        for name in [names] if isinstance(names, str) else list(names or ()):
            try:
                visitor.add(self.folder.read(name, self.engine.inputs))
            except _EXPECTED as error:
                problems.append(in_words(error))
        return None, waiting_html(visitor.pending), "".join(wrong(problem) for problem in problems)

    def example(self, visitor: Visitor, number: int) -> tuple[str, str, str]:
        """An example was chosen: the pictures that wait, the question, and what was refused."""
        chosen = self.examples[number]
        visitor.pending = [chosen.shown]
        return waiting_html(visitor.pending), chosen.text, ""

    def clear_pictures(self, visitor: Visitor) -> tuple[str, str]:
        """Pictures that wait are taken away."""
        visitor.pending = []
        return waiting_html(visitor.pending), ""

    # === Questions ===

    def ask(
        self, visitor: Visitor, question: str, compare: bool, names: Sequence[str], sliders: Sequence[Sliders]
    ) -> Iterator[tuple[Any, ...]]:
        """A question was asked.

        Yields:
            the values of `ANSWERED`; None for what stays as it is.
        """
        visitor.stopping = False
        count = 2 if compare else 1
        try:
            check_question(question)
            if len(question) > LONGEST_QUESTION:
                raise ValueError(f"The question has more than {LONGEST_QUESTION:,} characters; ask in fewer.")
            configs = [self.budgets.chosen(names[number], sliders[number]) for number in range(count)]
        except ValueError as error:
            yield _changed(status=wrong(error))
            return
        note = ""
        if visitor.align(count):
            note = fits("One of the conversations lacked an answer, so that a new one begins with the same pictures.")
        held, shown = visitor.sides, visitor.pending
        for number, (side, config) in enumerate(zip(held[:count], configs, strict=True)):
            view = None
            try:
                for chat in self._answer(visitor, side, question, shown, config):
                    yield _changed(status=note, **{f"chat_{number}": conversation_html(chat)})
                if side.measured is not None:
                    view = patch_view_html(FollowedPrompt.behind(side.chat), names[number])
            except _EXPECTED as error:
                note += wrong(error)
            if visitor.sides is not held:  # a new conversation was begun meanwhile
                return
            compared = comparison_html(names[:count], [one.measured for one in held[:count]])
            answered = {f"chat_{number}": conversation_html(side.messages), f"view_{number}": view}
            yield _changed(status=note, comparison=compared, **answered)
            if visitor.stopping:
                break
        if any(side.messages for side in held[:count]):
            # What was added meanwhile waits for the next question.
            visitor.pending = [one for one in visitor.pending if all(one is not seen for seen in shown)]
            yield _changed(status=note, question="", pictures=waiting_html(visitor.pending))
        measured = [side for side in held[:count] if side.measured is not None]
        quick = sum(side.measured.prefill_seconds for side in measured if side.measured) < MOST_TIMING
        if len(measured) == count and quick and not visitor.stopping:
            _time_again(measured)
            compared = comparison_html(names[:count], [side.measured for side in measured])
            yield _changed(status=note, comparison=compared)

    def _answer(
        self, visitor: Visitor, side: Side, question: str, shown: Sequence[Shown], config: CompressionConfig
    ) -> Iterator[list[ChatMessage]]:
        """The conversation of one side while it is answered, a few times a second; it ends early if asked to."""
        asked, answering, last = ChatMessage.question(question, shown), side.ask(question, shown, config), 0.0
        try:
            for text in answering:
                now = time.monotonic()
                if now - last >= REFRESH:
                    last = now
                    yield [*side.messages, asked, ChatMessage(False, text)]
                if visitor.stopping:
                    break
        finally:
            answering.close()
        side.messages = [*side.messages, asked, ChatMessage(False, side.text)]

    def stop(self, visitor: Visitor) -> None:
        """Answers that are being given end here."""
        visitor.stopping = True

    def new(self, visitor: Visitor) -> tuple[Any, ...]:
        """A new conversation: everything as `ask` gives it, empty."""
        visitor.forget()
        empty, view = conversation_html(()), patch_view_html(None, "")
        compared = comparison_html((), ())
        return _changed(
            chat_0=empty,
            chat_1=empty,
            status="",
            question="",
            pictures=waiting_html(()),
            comparison=compared,
            view_0=view,
            view_1=view,
        )


def _time_again(sides: Sequence[Side]) -> None:
    """Prefills of several answers in turns, in place of those that were timed while they were given."""
    for side, seconds in zip(sides, timed_prefills([side.chat for side in sides], MOST_TIMING), strict=True):
        assert side.measured is not None
        side.measured = dataclasses.replace(side.measured, prefill_seconds=seconds)


def wrong(error: BaseException | str) -> str:
    """What went wrong, as a sentence on the page."""
    if isinstance(error, MemoryError):
        said = "That takes more memory than there is; show fewer or smaller pictures, or begin a new conversation."
    else:
        said = error if isinstance(error, str) else in_words(error)
    return f'<p class="dv-wrong" role="alert">{escape(printable(said, 1000, lines=True))}</p>'


def fits(sentence: str) -> str:
    """What can be said of a setting that fits."""
    return f'<p class="dv-fits" role="status">{escape(sentence)}</p>'


def _changed(**values: Any) -> tuple[Any, ...]:
    """Values in the order of `ANSWERED`; None, which leaves a component as it is, for those that are not given."""
    return tuple(values.get(name) for name in ANSWERED)
