"""Settings of a data check; small, because they are sent to the worker processes with every task."""

from __future__ import annotations

from dataclasses import dataclass

from llava.common.image_opening import DEFAULT_OPENING
from llava.common.own_scores import require_choice

LLAVA, NEXT, VIDEO = "llava-1.5", "llava-next", "video-llava"
"""Families whose data is checked, as `llava.common.presets.FAMILIES` has them."""
IMAGE_MODES = ("full", "header", "skip")


@dataclass(frozen=True)
class CheckSettings:
    """How records are judged.

    Attributes:
        template: key of `conv_templates`.
        tokenizer: folder or hub name; None estimates the number of tokens.
        max_length: tokens the model takes, images expanded.
        budgets: names of the compressions looked at.
        visual_tokens: tokens that one image becomes under each of them; where images differ, a usual one.
        images: `full` decodes every image and the frames of every video that are shown, `header` reads their first
            bytes, `skip` opens none.
        image_opening: `upright` or `llava`, as in training.
        aspect_ratio: as in training: decides how much memory a thin image takes; None where a processor of the model's
            own prepares images.
        family: `llava-1.5`, `llava-next` or `video-llava`.
        frames: frames of a video that are shown; 0 where the model is trained on none.
        frame_tokens: tokens of each of them under each budget.
        counted_frames: whether every video shows so many; else it is as long as its seconds, and has one mark.
        uncut: tokens of a usual image, and of a usual video, before any is merged, where samples are cut by these.
    """

    template: str = "v1"
    tokenizer: str | None = None
    max_length: int = 2048
    budgets: tuple[str, ...] = ("none",)
    visual_tokens: tuple[int, ...] = (576,)
    images: str = "full"
    aspect_ratio: str | None = "pad"
    image_opening: str = DEFAULT_OPENING
    family: str = LLAVA
    frames: int = 0
    frame_tokens: tuple[int, ...] = ()
    counted_frames: bool = True
    uncut: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_choice("images", self.images, IMAGE_MODES)

    def counts(self, kind: str, budget: int) -> list[int]:
        """Visual tokens of each mark of an image, or of the frames of a video, under a budget by its number."""
        if kind == "image":
            return [self.visual_tokens[budget]]
        each = [self.frame_tokens[budget]] * self.frames
        return each if self.counted_frames else [sum(each)]
