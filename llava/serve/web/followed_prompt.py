"""What the page shows of the prompt behind an answer: pictures as the tower saw them, patches, and words that voted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from llava.common.outside_files import in_words
from llava.data.frames import Frames
from llava.inference.chat import Chat, ChatRequest
from llava.model.layer_attention import WatchedPrompt, watch_prompt
from llava.model.traced_media import TracedUnit, frame_parts, traced_media
from llava.serve.overlay import picture_of

MOST_WORDS = 160
"""Tokens of the prompt's end that are shown."""


@dataclass(frozen=True)
class FollowedPrompt:
    """One prompt, looked at from pixels to the last layer.

    Attributes:
        layers: number of decoder layers.
        tokens: visual tokens that entered the decoder.
        cuts: after how many layers tokens were dropped.
        gone: after how many layers each visual token was dropped; 0 for those that stay.
        attention: attention in percent that the voters paid each token in each layer, [layers][tokens].
        units: what became of the patches of each image, crop and frame; empty where that cannot be said.
        names: what each of them is, such as `image 1, crop 2 of 5`.
        pictures: each as the tower saw it.
        words: the end of the prompt token by token, and whether each voted.
        reason: why there are no units; "" where there are.
    """

    layers: int
    tokens: int
    cuts: tuple[int, ...]
    gone: list[int]
    attention: list[list[float]]
    units: list[TracedUnit] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    words: list[tuple[str, bool]] = field(default_factory=list)
    reason: str = ""

    @classmethod
    def behind(cls, chat: Chat) -> FollowedPrompt | None:
        """Of the last answer of a conversation; None where it showed no picture. Computes its prefill once more."""
        request = chat.last_request
        if request is None or not request.pixels:
            return None
        engine = chat.engine
        inputs = engine.asked([request.sample])
        watched = watch_prompt(engine.model, inputs, request.compression)
        units, names, pictures, reason = _shown(chat, inputs, request, watched.layouts[0].entered[0])
        t2v = request.compression.t2v
        return cls(
            len(engine.model.decoder.layers),
            watched.layouts[0].entered[0],
            t2v.layers if t2v else (),
            _gone(watched, t2v.layers if t2v else ()),
            [[round(100 * value, 3) for value in layer] for layer in watched.attention[:, 0].tolist()],
            units,
            names,
            pictures,
            _words(engine, inputs["input_ids"][0].tolist(), set(watched.voting_columns())),
            reason,
        )


def _gone(watched: WatchedPrompt, cuts: Sequence[int]) -> list[int]:
    """After how many layers each token was dropped; 0 for never."""
    gone = [0] * watched.layouts[0].entered[0]
    for cut, layout in reversed(list(zip(cuts, watched.layouts[1:], strict=True))):
        for token, alive in enumerate(layout.alive()[0].tolist()):
            if not alive:
                gone[token] = cut
    return gone


def _shown(
    chat: Chat, inputs: dict[str, Any], request: ChatRequest, entered: int
) -> tuple[list[TracedUnit], list[str], list[Image.Image], str]:
    """Units, their names and pictures; or none, and why."""
    engine = chat.engine
    try:
        media = traced_media(engine.model, inputs, request.pixels, request.compression)
        if sum(medium.count for medium in media) != entered:
            raise ValueError(
                f"{entered} visual tokens entered the language model, but the pictures account for "
                f"{sum(medium.count for medium in media)}, so that they cannot be shown on them."
            )
    except ValueError as error:
        return [], [], [], in_words(error)
    units, names, pictures = [], [], []
    for name, shown, medium in zip(_names(chat, request), request.pixels, media, strict=True):
        for unit in medium.units:
            units.append(unit)
            names.append(f"{name}, {unit.part}" if unit.part else name)
            pictures.append(picture_of(unit.pixels, _made_by(engine.inputs.processor, shown)))
    return units, names, pictures, ""


def _names(chat: Chat, request: ChatRequest) -> list[str]:
    """What each medium of a prompt is, such as `image 2`; to some families each frame of a video is a medium."""
    names = []
    for number, shown in enumerate(chat.images, 1):
        kind = "video" if isinstance(shown, Frames) else "image"
        name = f"{kind} {number}" if len(chat.images) > 1 else f"the {kind}"
        apart = isinstance(shown, Frames) and len(request.pixels) != len(chat.images)
        names += [f"{name}, {part}" for part in frame_parts(len(shown))] if apart else [name]  # type: ignore[arg-type]
    return names


def _made_by(processor: Any, shown: Any) -> Any:
    """The part of the model's processor that normalised a medium's pixels."""
    kind = getattr(shown, "kind", None)
    return processor if kind is None else getattr(processor, f"{kind}_processor")


def _words(engine: Any, ids: list[int], voters: set[int]) -> list[tuple[str, bool]]:
    """The tokens of a prompt as text, placeholders left out, and whether each votes; only the last `MOST_WORDS`."""
    marks = set(engine.model.is_placeholder(torch.tensor(ids)).nonzero().flatten().tolist())
    columns = [column for column in range(len(ids)) if column not in marks and ids[column] >= 0]
    words, before = [], ""
    first = max(len(columns) - MOST_WORDS, 0)
    for count, column in enumerate(columns[first:], first + 1):
        whole = engine.tokenizer.decode([ids[one] for one in columns[first:count]])
        words.append((whole[len(before) :] if whole.startswith(before) else whole, column in voters))
        before = whole
    return words
