"""What a family says about the inputs of its models.

A *sample* is one conversation as the family encoded it: a dict with at least `input_ids`, `labels` and `query_mask`
(int64 [T]); how its media are held is the family's own affair. *Media* are what the model is shown in one conversation,
each prepared by `image` or `video`, in the order of their marks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.common.image_opening import opening_of

Sample = dict[str, Any]


class ModelInputs(ABC):
    """Makes the inputs of one model from turns and media; holds no weights, so that other processes can work with it.

    Args:
        config, tokenizer: of the model.
        processor: of the model, prepares its media; None for one that is shown none.
        template: in which it is asked, see `template_for`.
        image_opening: `upright` or `llava`, see `llava.common.image_opening`; None for the model's.

    Raises:
        ValueError: if there is no such template or opening.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: PreTrainedTokenizerBase,
        processor: Any,
        template: str,
        image_opening: str | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.processor = processor
        self.template = template
        self.image_opening = opening_of(config, image_opening)

    @classmethod
    @abstractmethod
    def template_for(cls, config: Any, model_name: str, asked: str | None = None, usual: str | None = None) -> str:
        """The conversation template to ask a model in.

        Args:
            config: of the model.
            model_name: of `get_model_name_from_path`.
            asked: name of a template, None where nothing was asked for.
            usual: where the model records none; None goes by the model's name.

        Raises:
            ValueError: if there is no such template.
        """

    @classmethod
    def with_roles(cls, template: str) -> str:
        """The same template, if a model can be asked in it.

        Raises:
            ValueError: if there is no such template, or it has no roles, being one for captions.
        """
        return template

    @property
    @abstractmethod
    def stop(self) -> str | None:
        """The words that end an answer; None where a token of the tokenizer does."""

    @property
    def limit(self) -> int:
        """Tokens that the model can number."""
        return int(self.config.max_position_embeddings)

    @abstractmethod
    def image(self, picture: Image.Image, what: str) -> Any:
        """Prepare an image.

        Args:
            picture: in RGB.
            what: it is, to begin the sentence of an error with.

        Raises:
            ValueError: if it becomes larger than images may be, or the model is shown none.
        """

    @abstractmethod
    def video(self, frames: Sequence[Image.Image], what: str) -> list[Any]:
        """Prepare the frames of a video; returns an element for each mark that the video has. Errors as in `image`."""

    @abstractmethod
    def question(self, text: str, media: Sequence[Any]) -> str:
        """A human turn with a mark for each of its media: where it says so, else in front.

        Args:
            text: as written.
            media: of this turn.

        Raises:
            ValueError: if the text has another number of marks.
        """

    @abstractmethod
    def prompt(self, turns: Sequence[str], media: Sequence[Any], voting: int = -1) -> Sample:
        """A conversation that ends in a question, to be answered.

        Args:
            turns: texts, human and assistant alternating, human ones of `question`.
            media: of all turns.
            voting: number of the question whose tokens may vote on visual tokens, by default the last.
        """

    @abstractmethod
    def conversation(self, turns: Sequence[str], media: Sequence[Any]) -> Sample:
        """A conversation that ends in an answer, all answers labelled; arguments as in `prompt`."""

    @abstractmethod
    def length(self, sample: Sample, visual_tokens: int) -> int:
        """Tokens of a sample in the language model, if each of its images (or crops, or frames) brings so many."""

    @abstractmethod
    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Samples as arguments of the model's `forward`, `labels` among them; without these, of its `generate`."""
