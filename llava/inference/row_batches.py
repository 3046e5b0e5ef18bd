"""Several prompts in one call of `generate`, each answered as if it were alone: with an own length, end and seed.

    answer_rows(engine, samples, settings, compression, listener)

Rows go on together until all have ended. A row that ends, or is left by who asked for it, is told at once and costs no
other row a step; what it costs until the others end is a column of padding. Texts are those that each row would get
alone, up to the rounding of sums whose order depends on a batch's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import StoppingCriteria

from llava.compression.config import CompressionConfig
from llava.data.families.base import Sample
from llava.inference.ending import end_tokens, stopping_at
from llava.inference.engine import Engine
from llava.inference.generation import CountingCache, GenerationSettings
from llava.inference.growing_text import GrowingText
from llava.inference.row_sampling import RowSampling, RowSettings

STOPPED, LENGTH, LEFT = "stop", "length", "left"
"""Why an answer ended: by a token or words that end it, by its longest length, or because nobody wants it any more."""


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of one prompt.

    Attributes:
        before: that there would be without compression.
        entered: that entered the language model, behind V2V.
        average: that a decoder layer saw, mean over layers.
    """

    before: int
    entered: int
    average: float


@dataclass(frozen=True)
class RowAnswer:
    """One answer.

    Attributes:
        text: the answer.
        tokens: tokens that were generated, with the one that ended it.
        ended: `STOPPED`, `LENGTH` or `LEFT`.
        visual: visual tokens of the prompt.
        text_tokens: tokens of the prompt beside them.
    """

    text: str
    tokens: int
    ended: str
    visual: VisualTokens
    text_tokens: int


class RowListener(Protocol):
    """Who asked for the rows of a batch; is called in the thread of the model, rows by their number."""

    def left(self, row: int) -> bool:
        """Whether nobody wants the answer any more."""

    def shown(self, row: int, piece: str) -> None:
        """More text of an answer."""

    def answered(self, row: int, answer: RowAnswer) -> None:
        """An answer is whole; other rows may still go on."""

    def stepped(self) -> None:
        """Every row got a token."""


def answer_rows(
    engine: Engine,
    samples: Sequence[Sample],
    settings: Sequence[RowSettings],
    compression: CompressionConfig,
    listener: RowListener,
) -> list[int]:
    """Answer prompts together.

    Args:
        engine: the model.
        samples: prompts as the family encodes them, at least one.
        settings: of each of them.
        compression: budget of all of them, as the model's `checked` gives it.
        listener: is told what comes.

    Returns:
        rows without an answer, because the model computed NaN or infinity for them.

    Raises:
        ValueError: if the model refuses the prompts.
    """
    inputs = engine.asked(samples)
    more: dict[str, Any] = {"compression": compression}
    cache = CountingCache(engine.model.decoder.config) if engine.model.is_staged(compression) else None
    if cache is not None:
        more["past_key_values"] = cache
    sampling = RowSampling(settings)
    steps = _Steps(engine, samples, settings, sampling, cache, listener)
    longest = max(row.max_new_tokens for row in settings)
    greedy = GenerationSettings(temperature=0, num_beams=1, max_new_tokens=longest)
    generated = engine.generate(inputs, greedy, logits_processor=[sampling], stopping_criteria=[steps], **more)
    return generated.broken


class _Row:
    """What is known of a row while it is answered."""

    def __init__(self, settings: RowSettings, text: GrowingText) -> None:
        self.settings = settings
        self.text = text
        self.tokens = 0
        self.ended: str | None = None

    def take(self, token: int, ends: bool, marked: bool) -> str:
        """Another token; returns what can be shown of it.

        Args:
            token: its id.
            ends: whether it is a token that ends answers.
            marked: whether the words that end answers of the model are whole with it.
        """
        self.tokens += 1
        piece = "" if ends else self.text.add(token)
        if ends or marked or self.text.ended:
            self.ended = STOPPED
        elif self.tokens >= self.settings.max_new_tokens:
            self.ended = LENGTH
        return piece if self.ended is None else piece + self.text.end()


class _Steps(StoppingCriteria):
    """Looks at every token of every row as it comes; ends the rows."""

    def __init__(
        self,
        engine: Engine,
        samples: Sequence[Sample],
        settings: Sequence[RowSettings],
        sampling: RowSampling,
        cache: CountingCache | None,
        listener: RowListener,
    ) -> None:
        mark = engine.inputs.stop
        words = () if mark is None else (mark,)
        self._rows = [_Row(row, GrowingText(engine.tokenizer, (*words, *row.stop))) for row in settings]
        self._engine = engine
        self._samples = samples
        self._sampling = sampling
        self._cache = cache
        self._listener = listener
        self._marks = stopping_at(mark, engine.tokenizer)
        given = end_tokens(engine.model, engine.tokenizer).get(
            "eos_token_id", engine.model.generation_config.eos_token_id
        )
        self._ends = set(given if isinstance(given, list) else [given])

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows of `input_ids` [B, T] have ended, bool [B]."""
        broken = self._sampling.broken
        assert broken is not None  # logits come before tokens
        tokens, failed = torch.stack([input_ids[:, -1], broken.to(input_ids)]).tolist()
        marked = [any(at) for at in zip(*(mark(input_ids, scores).tolist() for mark in self._marks), strict=True)]
        for number, row in enumerate(self._rows):
            if row.ended is None and not failed[number]:
                self._take(number, row, tokens[number], bool(marked) and marked[number])
        self._listener.stepped()
        ended = [row.ended is not None or bool(fault) for row, fault in zip(self._rows, failed, strict=True)]
        return torch.tensor(ended, device=input_ids.device)

    def _take(self, number: int, row: _Row, token: int, marked: bool) -> None:
        piece = row.take(token, token in self._ends, marked)
        if row.ended is None and self._listener.left(number):
            row.ended = LEFT
        if piece:
            self._listener.shown(number, piece)
        if row.ended is not None:
            self._listener.answered(number, self._answer(number, row))

    def _answer(self, number: int, row: _Row) -> RowAnswer:
        inputs, sample = self._engine.inputs, self._samples[number]
        settings = self._engine.model.plan_settings(CompressionConfig())
        before = inputs.visual_tokens(sample, settings)
        visual = VisualTokens(before, before, float(before))
        if self._cache is not None:
            entered = int(self._cache.tokens[0][number])
            visual = VisualTokens(before, entered, self._cache.averages(1)[number])
        text = inputs.length(sample, settings) - before
        return RowAnswer(row.text.text, row.tokens, row.ended or LEFT, visual, text)
