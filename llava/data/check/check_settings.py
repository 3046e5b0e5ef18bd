"""Settings of a data check; small, because they are sent to the worker processes with every task."""

from __future__ import annotations

from dataclasses import dataclass

from llava.common.image_opening import DEFAULT_OPENING

IMAGE_MODES = ("full", "header", "skip")


@dataclass(frozen=True)
class CheckSettings:
    """How records are judged.

    Attributes:
        template: key of `conv_templates`.
        tokenizer: folder or hub name; None estimates the number of tokens.
        max_length: tokens the model takes, images expanded.
        budgets: names of the compressions looked at.
        visual_tokens: tokens that one image becomes under each of them.
        images: `full` decodes every image, `header` reads its first bytes, `skip` opens none.
        image_opening: `upright` or `llava`, as in training.
        aspect_ratio: `pad` or `square`, as in training: decides how much memory a thin image takes.
    """

    template: str = "v1"
    tokenizer: str | None = None
    max_length: int = 2048
    budgets: tuple[str, ...] = ("none",)
    visual_tokens: tuple[int, ...] = (576,)
    images: str = "full"
    aspect_ratio: str = "pad"
    image_opening: str = DEFAULT_OPENING
