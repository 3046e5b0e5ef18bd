"""LLaVA's own format: templates of `llava.conversation`, `<image>` for each image, frames of a video as images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX, LITERAL_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN
from llava.conversation import SeparatorStyle, get_template, recorded_template
from llava.data.collator import SupervisedCollator
from llava.data.families.base import ModelInputs, Sample
from llava.data.images import within_limits
from llava.data.records import wrap_image_marks
from llava.data.tokenization import EncodedText, encode_conversation, encode_prompt, one_question
from llava.mm_utils import aspect_ratio_of, preprocess_image

logger = logging.getLogger(__name__)

DEFAULT_CONV_MODE = "v1"

# A part of a model's name, and the template that LLaVA speaks such models in; the first that fits decides.
_TEMPLATES_BY_NAME = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
    ("v0", "llava_v0"),
)
_INPUTS = ("input_ids", "attention_mask", "query_mask", "labels", "images")


class LlavaInputs(ModelInputs):
    """Inputs of LLaVA; `template` is a key of `conv_templates`, media are pixels [3, height, width]."""

    @classmethod
    def template_for(cls, config: Any, model_name: str, asked: str | None = None, usual: str | None = None) -> str:
        """What was asked for, else what `config.json` records of training, else what is usual, else by the name.

        Where what was asked for makes other prompts than training did, a warning says so.
        """
        recorded = recorded_template(config)
        if asked is None:
            return recorded or usual or conv_mode_of(model_name)
        chosen = get_template(asked)
        if recorded is not None and chosen != get_template(recorded):
            logger.warning(
                "The model was trained in conversation template %s, as its config.json says; %s was asked for and is "
                "used.",
                recorded,
                asked,
            )
        return asked

    @classmethod
    def with_roles(cls, template: str) -> str:
        """As in `ModelInputs`; `plain` templates have no roles."""
        if get_template(template).sep_style is SeparatorStyle.PLAIN:
            raise ValueError(f"Template {template!r} has no roles to ask in; choose another conv_mode (--conv-mode).")
        return template

    @property
    def stop(self) -> str | None:
        """As in `ModelInputs`."""
        mark = get_template(self.template).end_mark
        return None if mark == self.tokenizer.eos_token else mark

    def image(self, picture: Image.Image, what: str) -> Tensor:
        """As in `ModelInputs`; returns pixels [3, height, width]."""
        if self.processor is None:
            raise ValueError("The model has no vision tower; give a LLaVA.")
        with within_limits(what):
            return preprocess_image(picture, self.processor, aspect_ratio_of(self.config))

    def video(self, frames: Sequence[Image.Image], what: str) -> list[Tensor]:
        """As in `ModelInputs`; an image for each frame."""
        return [self.image(frame, what) for frame in frames]

    def question(self, text: str, media: Sequence[Any]) -> str:
        """As in `ModelInputs`; an `<image>` for each image, a line each in front, and `\\<image>` is the word itself.

        The model's `mm_use_im_start_end` surrounds marks, and so do some templates.
        """
        text = text.replace(WRITTEN_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN)
        marks, count = text.count(DEFAULT_IMAGE_TOKEN), len(media)
        if marks not in (0, count):
            raise ValueError(
                f"The question holds {marks} {DEFAULT_IMAGE_TOKEN}, but {count} images were given; write one for each, "
                f"or none to have them in front. {WRITTEN_IMAGE_TOKEN} is the word itself."
            )
        if marks == 0:
            text = f"{DEFAULT_IMAGE_TOKEN}\n" * count + text
        tagged = "mmtag" in get_template(self.template).version
        return wrap_image_marks(text, bool(getattr(self.config, "mm_use_im_start_end", False)), tagged)

    def prompt(self, turns: Sequence[str], media: Sequence[Any], voting: int = -1) -> Sample:
        """As in `ModelInputs`."""
        return _sample(one_question(encode_prompt(turns, self.tokenizer, self.template), voting), media)

    def conversation(self, turns: Sequence[str], media: Sequence[Any]) -> Sample:
        """As in `ModelInputs`."""
        return _sample(encode_conversation(turns, self.tokenizer, self.template, bool(media)), media)

    def length(self, sample: Sample, visual_tokens: int) -> int:
        """As in `ModelInputs`."""
        ids: Tensor = sample["input_ids"]
        return len(ids) + int((ids == IMAGE_TOKEN_INDEX).sum()) * (visual_tokens - 1)

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As in `ModelInputs`; see `SupervisedCollator`."""
        collated = SupervisedCollator(self.tokenizer.pad_token_id or 0)(samples)
        return {name: collated[name] for name in _INPUTS if name in collated}


def _sample(encoded: EncodedText, media: Sequence[Any]) -> Sample:
    return encoded.tensors() | {"images": list(media), "sample_id": None, "truncated": encoded.truncated}


def conv_mode_of(model_name: str) -> str:
    """The conversation template that a model's name asks for, by LLaVA's rules, and v1 where none fits."""
    name = model_name.lower()
    return next((template for part, template in _TEMPLATES_BY_NAME if part in name), DEFAULT_CONV_MODE)
