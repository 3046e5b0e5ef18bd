"""What the page shows of the prompt behind an answer: pictures as the tower saw them, patches, and words that voted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.common.outside_files import in_words
from llava.inference.chat import Chat, ChatRequest
from llava.model.layer_attention import WatchedPrompt, watch_prompt
from llava.model.trace import TracedUnit, traced_units, units_of
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
        inputs = engine.batch([request.sample])
        del inputs["labels"]
        watched = watch_prompt(engine.model, inputs, request.compression)
        units, names, pictures, reason = _shown(engine, inputs, request)
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
    engine: Any, inputs: dict[str, Any], request: ChatRequest
) -> tuple[list[TracedUnit], list[str], list[Image.Image], str]:
    """Units, their names and pictures; or none, and why."""
    try:
        units = traced_units(engine.model, inputs, request.pixels, request.compression)
    except ValueError as error:
        return [], [], [], in_words(error)
    names, pictures = [], []
    for number, medium in enumerate(request.pixels, 1):
        squares = _squares(engine, medium)
        kind, part = _kinds(medium)
        for place, (pixels, processor) in enumerate(squares, 1):
            name = f"{kind} {number}" if len(request.pixels) > 1 else f"the {kind}"
            names.append(name if len(squares) == 1 else f"{name}, {part} {place} of {len(squares)}")
            pictures.append(picture_of(pixels, processor))
    return units, names, pictures, ""


def _kinds(medium: Any) -> tuple[str, str]:
    """What a medium is, and what its units are."""
    is_video = getattr(medium, "kind", "") == "video" or (isinstance(medium, Tensor) and medium.dim() == 4)
    return ("video", "frame") if is_video else ("image", "crop")


def _squares(engine: Any, medium: Any) -> list[tuple[Tensor, Any]]:
    """The pixels [3, height, width] of each unit of a medium, and the processor that normalised them."""
    made = getattr(medium, "inputs", None)
    if made is None:
        return [(unit, engine.inputs.processor) for unit in units_of(medium)]
    video = medium.kind == "video"
    processor = engine.inputs.processor.video_processor if video else engine.inputs.processor.image_processor
    pixels, grid = (
        (made["pixel_values_videos"], made["video_grid_thw"])
        if video
        else (
            made["pixel_values"],
            made["image_grid_thw"],
        )
    )
    return [(frame, processor) for frame in unflattened(pixels, grid[0].tolist(), engine.model.config.vision_config)]


def unflattened(patches: Tensor, grid: Sequence[int], vision: Any) -> list[Tensor]:
    """The pictures behind the patches that Qwen's processors make: the first frame of each group in time.

    Args:
        patches: [T * H * W, 3 * frames of a group * side * side], those of a merged group next to each other.
        grid: T, H, W: groups in time, patches down and across.
        vision: configuration of the tower.

    Returns:
        [3, H * side, W * side] for each group in time.
    """
    time, height, width = grid
    merge, side, together = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    split = patches.view(time, height // merge, width // merge, merge, merge, 3, together, side, side)
    frames = split.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)  # [T, together, 3, rows, merge, side, columns, merge, side]
    return list(frames.reshape(time, together, 3, height * side, width * side)[:, 0])


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
