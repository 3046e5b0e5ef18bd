"""LLaVA's own format: templates of `llava.conversation`, `<image>` for each image, frames of a video as images.

An image is pixels [3, S, S], or with `image_aspect_ratio` `anyres` the `Crops` that it is cut into; frames are not cut.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from llava.common.anyres import is_anyres
from llava.compression.salience import salient_spans
from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN, LITERAL_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN
from llava.conversation import SeparatorStyle, fill_template, get_template, recorded_template
from llava.data.collator import SupervisedCollator, stacked
from llava.data.families.base import ModelInputs
from llava.data.frames import Frames
from llava.data.images import within_limits
from llava.data.mark_words import words_of_others
from llava.data.records import wrap_image_marks
from llava.data.salient import SalientFinder
from llava.data.tokenization import EncodedText, encode_conversation, encode_prompt
from llava.mm_utils import aspect_ratio_of, preprocess_image
from llava.model.crops import Crops
from llava.model.splice import PlanSettings

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


class LlavaInputs(ModelInputs):
    """Inputs of LLaVA; `template` is a key of `conv_templates`, media are pixels [3, height, width] or `Crops`."""

    model_types = ("llava_llama",)
    arguments = (*ModelInputs.arguments, "image_sizes")
    between_parts = "\n"
    media_first = True

    @classmethod
    def template_for(cls, config: Any, model_name: str, asked: str | None = None, usual: str | None = None) -> str:
        """What was asked for, else what `config.json` records of training, else what is usual, else by the name.

        Where what was asked for makes other prompts than training did, a warning says so.
        """
        recorded = recorded_template(config)
        if asked is None:
            return recorded or usual or cls.template_by_name(model_name)
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
    def template_by_name(cls, model_name: str) -> str:
        """By LLaVA's rules, and v1 where none fits."""
        name = model_name.lower()
        return next((template for part, template in _TEMPLATES_BY_NAME if part in name), DEFAULT_CONV_MODE)

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

    def image(self, picture: Image.Image, what: str) -> Tensor | Crops:
        """As in `ModelInputs`; returns pixels [3, height, width], or those of crops."""
        pixels = self._pixels(picture, what, aspect_ratio_of(self.config))
        return Crops(pixels, picture.size) if self._cuts else pixels

    def video(self, frames: Frames, what: str) -> list[Tensor]:
        """As in `ModelInputs`; an image for each frame, which is not cut."""
        ratio = "square" if self._cuts else aspect_ratio_of(self.config)
        return [self._pixels(frame, what, ratio) for frame in frames]

    def _pixels(self, picture: Image.Image, what: str, aspect_ratio: str | None) -> Tensor:
        if self.processor is None:
            raise ValueError("The model has no vision tower; give a LLaVA.")
        with within_limits(what):
            return preprocess_image(
                picture, self.processor, aspect_ratio, getattr(self.config, "image_grid_pinpoints", None)
            )

    @property
    def _cuts(self) -> bool:
        return is_anyres(aspect_ratio_of(self.config))

    @property
    def trains_on_videos(self) -> bool:
        """As in `ModelInputs`: LLaVA-1.5 is trained on images alone."""
        return False

    @property
    def video_marks(self) -> int:
        """As in `ModelInputs`: an image for each frame, and as many of every video."""
        return len(self.sampling.numbers(1, None, self.usual_frames))

    def question(self, text: str, media: Sequence[Any]) -> str:
        """As in `ModelInputs`; marks are `<image>`, a line each in front, and `\\<image>` is the word itself."""
        text = text.replace(WRITTEN_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN)
        marks, count = text.count(DEFAULT_IMAGE_TOKEN), sum(map(self.marks, media))
        if marks not in (0, count):
            raise ValueError(
                f"The question holds {marks} {DEFAULT_IMAGE_TOKEN}, but {count} images were given; write one for each, "
                f"or none to have them in front. {WRITTEN_IMAGE_TOKEN} is the word itself."
            )
        if marks == 0:
            text = f"{DEFAULT_IMAGE_TOKEN}\n" * count + text
        return self.marked(text)

    def media_arguments(self, media: Sequence[Any]) -> dict[str, Any]:
        """Arguments of the model for the media of a batch, in reading order; at least one."""
        if not self._cuts:
            return stacked(media)
        whole = [medium if isinstance(medium, Crops) else Crops(medium[None], medium.shape[:0:-1]) for medium in media]
        return {"images": [image.pixels for image in whole], "image_sizes": [tuple(image.size) for image in whole]}

    def tower_tokens(self, medium: Any) -> list[int | None]:
        """As in `ModelInputs`."""
        return [None] * (len(medium.pixels) if isinstance(medium, Crops) else self.marks(medium))

    def encoding_facts(self) -> list[str]:
        """As in `ModelInputs`."""
        return [*super().encoding_facts(), repr(get_template(self.template)), str(self._start_end)]

    def marked(self, turn: str) -> str:
        """As in `ModelInputs`; the model's `mm_use_im_start_end` surrounds marks, and so do some templates."""
        return wrap_image_marks(turn, self._start_end, "mmtag" in get_template(self.template).version)

    @property
    def _start_end(self) -> bool:
        return bool(getattr(self.config, "mm_use_im_start_end", False))

    def taught(self, turn: str, kinds: Collection[str]) -> str:
        """As in `ModelInputs`; a mark that is the only one of its turn stands in front, as LLaVA puts it."""
        turn = words_of_others(turn, kinds)
        marks = [mark for mark in (DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN) if mark in turn]
        if len(marks) == 1 and turn.count(marks[0]) == 1:
            turn = f"{marks[0]}\n{turn.replace(marks[0], '').strip()}".strip()
        return self.marked(turn.replace(DEFAULT_VIDEO_TOKEN, DEFAULT_IMAGE_TOKEN * self.video_marks))

    def written(self, turns: Sequence[str]) -> str:
        """As in `ModelInputs`."""
        return fill_template(self.template, [*turns, None]).get_prompt()

    def encode(
        self,
        turns: Sequence[str],
        with_media: bool,
        find_salient: SalientFinder = salient_spans,
        system: str | None = None,
        ask: bool = False,
    ) -> EncodedText:
        """As in `ModelInputs`; see `llava.data.tokenization`."""
        if ask:
            return encode_prompt(turns, self.tokenizer, self.template, find_salient, system)
        return encode_conversation(turns, self.tokenizer, self.template, with_media, find_salient, system)

    def collator(self, image_size: int | None = None, settings: PlanSettings | None = None) -> SupervisedCollator:
        """As in `ModelInputs`."""
        return SupervisedCollator(
            self.tokenizer.pad_token_id or 0, image_size, settings, self.media_arguments, self.tower_tokens
        )
