"""What an answer took, measured while it is given and computed from what it was given on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from llava.compression.config import CompressionConfig
from llava.cost.flops import prefill_flops
from llava.cost.seen_media import Medium, seen_by
from llava.cost.shapes import DecoderShape
from llava.cost.timing import timed
from llava.data.frames import Frames
from llava.inference.chat import Chat
from llava.inference.made_batches import as_prepared
from llava.inference.usage import Usage
from llava.model.measured_work import prefill


class AnswerClock(StoppingCriteria):
    """Notes when the tokens of an answer come; ends nothing.

    Attributes:
        began: when `start` was called, in seconds of `time.perf_counter`.
        times: when each token was there.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self.began = time.perf_counter()
        self.times: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor | None, **kwargs: Any) -> Tensor:
        """Of no row [B, T] is this the end: bool [B]."""
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    @property
    def prefill_seconds(self) -> float | None:
        """From `start` to the first token, the vision tower included; None before it."""
        return self.times[0] - self.began if self.times else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens behind the first; None where there are none."""
        if len(self.times) < 2:
            return None
        return (len(self.times) - 1) / max(self.times[-1] - self.times[0], 1e-9)


@dataclass(frozen=True)
class MeasuredAnswer:
    """What an answer took.

    Attributes:
        visual_tokens: visual tokens that each decoder layer cached.
        patches: what they would be without compression.
        text_tokens: tokens of the prompt beside its pictures.
        new_tokens: tokens of the answer, that which ended it included.
        prefill_seconds: from prepared pixels and ids to the first token; the fastest of several.
        tokens_per_second: of the tokens behind the first; None where there are none.
        kv_bytes: bytes of the KV cache behind the answer.
        flops: FLOPs of the prefill, computed; None where they are not known for the model.
    """

    visual_tokens: tuple[int, ...]
    patches: int
    text_tokens: int
    new_tokens: int
    prefill_seconds: float
    tokens_per_second: float | None
    kv_bytes: int
    flops: int | None

    @classmethod
    def of(
        cls, model: Any, compression: CompressionConfig, usage: Usage, clock: AnswerClock, media: Sequence[Medium]
    ) -> MeasuredAnswer:
        """Put together what is known of an answer.

        Args:
            model: that gave it.
            compression: the budget.
            usage: read from the answer's cache.
            clock: ran with it.
            media: images and videos of the whole conversation, see `media_of`.
        """
        new = len(clock.times)
        text = usage.text_tokens - max(new - 1, 0)  # the cache lacks the last token
        return cls(
            usage.visual_tokens,
            usage.patches,
            text,
            new,
            clock.prefill_seconds or 0.0,
            clock.tokens_per_second,
            usage.kv_bytes,
            prompt_flops(model, compression, usage.visual_tokens, text, media),
        )

    @property
    def average(self) -> float:
        """Visual tokens that a layer saw, in the mean."""
        return sum(self.visual_tokens) / len(self.visual_tokens)


def timed_prefills(chats: Sequence[Chat], seconds: float) -> list[float]:
    """The fastest of up to three prefills of each conversation's last answer, run in turns: a busy moment touches all.

    Args:
        chats: conversations with one model, each of which has answered.
        seconds: after which no further round begins.

    Returns:
        seconds from prepared pixels and ids to the first token's logits, for each.
    """
    model, runs = chats[0].model, []
    for chat in chats:
        assert chat.last_request is not None
        batch = chat.engine.asked([chat.last_request.sample])
        runs.append(partial(prefill, model, batch, chat.last_request.compression))
    began, fastest = time.perf_counter(), [float("inf")] * len(chats)
    for _ in range(3):
        fastest = [min(known, timed(run, model.device)) for known, run in zip(fastest, runs, strict=True)]
        if time.perf_counter() - began > seconds:
            break
    return fastest


def medium_of(shown: Image.Image | Frames) -> Medium:
    """An image or the frames of a video by their size."""
    if isinstance(shown, Frames):
        return Medium(*shown.pictures[0].size, frames=len(shown))
    return Medium(*shown.size)


def media_of(chat: Chat) -> list[Medium]:
    """What the last prompt of a conversation shows, at the size to which the model's processor brought it."""
    media = [medium_of(shown) for shown in chat.images]
    prepared = chat.last_request.pixels if chat.last_request is not None else []
    if len(prepared) != len(media):  # a video is several media to some families, none of which changes sizes
        return media
    return [as_prepared(one, medium, chat.model.config) for one, medium in zip(prepared, media, strict=True)]


def prompt_flops(
    model: Any, compression: CompressionConfig, visual_tokens: Sequence[int], text_tokens: int, media: Sequence[Medium]
) -> int | None:
    """FLOPs from pixels to the logits of the first token, whatever kinds of media are shown.

    Args:
        model: model of any family.
        compression: the budget.
        visual_tokens: visual tokens of each layer.
        text_tokens: tokens of the prompt beside them.
        media: what is shown.

    Returns:
        the number, by the formulas of `llava.cost.flops`; None where they do not know what the model is shown.
    """
    config = model.config.to_dict()
    decoder = DecoderShape.of(model.config.get_text_config())
    total, tokens = prefill_flops(visual_tokens, text_tokens, decoder, images=0), 0
    for medium, count in Counter(media).items():
        try:
            seen = seen_by(config, medium, len(media))
            entered = seen.visual_tokens(compression.v2v)
        except (ValueError, KeyError):
            return None
        total += count * (seen.flops() + seen.projector_flops(entered, decoder.width))
        tokens += count * entered
    return total if tokens == visual_tokens[0] else None
