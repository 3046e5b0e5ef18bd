"""What a family says about the inputs of its models.

*Media* are what the model is shown in one conversation, each prepared by `image` or `video`, in the order of their
marks. What a medium is, is the family's own affair: no other code looks into one. A *sample* is one conversation as the
family encoded it: a dict with at least `input_ids`, `labels`, `query_mask` (int64 [T]) and `images`, the list of its
media, whatever they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.common.image_opening import opening_of
from llava.compression.config import V2VConfig
from llava.compression.salience import salient_spans
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.data.families.encoding_key import encoding_key
from llava.data.families.registry import register_inputs
from llava.data.frames import Frames, FrameSampling
from llava.data.mark_words import words_of_others
from llava.data.salient import SalientFinder
from llava.data.tokenization import EncodedText, kept_tokens, one_question, shortened
from llava.model.splice import PlanSettings

USUAL_SIZE = (640, 480)
_USUAL_FRAMES, _USUAL_FPS = 300, 30.0
Sample = dict[str, Any]
Collator = Callable[[Sequence[Sample]], dict[str, Any]]


class ModelInputs(ABC):
    """Makes the inputs of one model from turns and media; holds no weights, so that other processes can work with it.

    Args:
        config, tokenizer: configuration and tokenizer of the model.
        processor: processor of the model, prepares its media; None for one that is shown none.
        template: in which it is asked, see `template_for`.
        image_opening: `upright` or `llava`, see `llava.common.image_opening`; None for the model's.
        sampling: what was asked for of the frames of videos; None leaves it to the family.

    A subclass that names `model_types` is registered when it is defined; `register_inputs` does it by hand.

    Attributes:
        model_types: `model_type`s of the models it is for, as their `config.json` has them.
        arguments: arguments of the model, among what the collator gives.
        usual_frames: frames of a video where no number is asked for.
        counted_frames: whether that number is the same for every video; else it follows from the video's length.
        between_parts: what stands between the parts of a turn in `asked`.
        media_first: whether media that stand behind all words of a turn are moved in front of them, as in training.

    Raises:
        ValueError: if there is no such opening, or the model cannot be shown videos as asked for.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    arguments: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "query_mask", "labels", "images")
    usual_frames: ClassVar[int] = 8
    counted_frames: ClassVar[bool] = True
    between_parts: ClassVar[str] = ""
    media_first: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "model_types" in vars(cls):
            register_inputs(cls)

    def __init__(
        self,
        config: Any,
        tokenizer: PreTrainedTokenizerBase,
        processor: Any,
        template: str,
        image_opening: str | None = None,
        sampling: FrameSampling | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.processor = processor
        self.template = template
        self.image_opening = opening_of(config, image_opening)
        self.sampling = sampling or FrameSampling()

    @classmethod
    def serves(cls, config: Any) -> bool:
        """Whether a class without `model_types` stands for the family that it derives from, with this model."""
        return False

    @classmethod
    @abstractmethod
    def template_for(cls, config: Any, model_name: str, asked: str | None = None, usual: str | None = None) -> str:
        """The conversation template to ask a model in.

        Args:
            config: configuration of the model.
            model_name: result of `get_model_name_from_path`.
            asked: name of a template, None where nothing was asked for.
            usual: where the model records none; None goes by the model's name.

        Raises:
            ValueError: if there is no such template.
        """

    @classmethod
    def template_by_name(cls, model_name: str) -> str | None:
        """The template that a model's name asks for; None where names say nothing."""
        return None

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
            picture: picture in RGB.
            what: it is, to begin the sentence of an error with.

        Raises:
            ValueError: if it becomes larger than images may be, or the model is shown none.
        """

    @abstractmethod
    def video(self, frames: Frames, what: str) -> list[Any]:
        """Prepare the frames of a video, those of `frame_numbers`: one medium or several. Errors as in `image`."""

    @classmethod
    def frames_of(cls, config: Any) -> int:
        """Frames of a video where no number is asked for."""
        return cls.usual_frames

    def frame_numbers(self, total: int, fps: float | None) -> list[int]:
        """Which frames of a video are shown, in order; those of a short one may come several times.

        Args:
            total: frames of the video, at least 1.
            fps: its frames a second; None where nothing says.

        Raises:
            ValueError: if the video is too short for the model.
        """
        return self.sampling.numbers(total, fps, self.usual_frames)

    @property
    def trains_on_videos(self) -> bool:
        """Whether records with videos can be trained on.

        Raises:
            ValueError: if they could, but something is missing that prepares videos.
        """
        return True

    @property
    def video_marks(self) -> int:
        """How many `IMAGE_TOKEN_INDEX` a video takes in what `encode` returns, all its media together."""
        return 1

    def marks(self, medium: Any) -> int:
        """How many `IMAGE_TOKEN_INDEX` a medium takes in what `encode` returns."""
        return 1

    def tower_tokens(self, medium: Any) -> Sequence[int | None]:
        """Tokens that the tower computes of each image, crop or frame of a medium, for what training reports.

        None for as many as the tower computes of every image.
        """
        return [None]

    def tokens(self, medium: Any, settings: PlanSettings) -> list[int]:
        """The visual tokens that each `IMAGE_TOKEN_INDEX` of a medium becomes."""
        return settings.counts(medium)

    def blank(self, kind: str) -> Any:
        """A medium that shows nothing, in place of one that cannot be read; as small as they come.

        Args:
            kind: `image`, or `video` for one of the media that a video becomes.
        """
        medium = self._shown_still(kind, Image.new("RGB", (1, 1)), 1, None)[0]
        return medium.zero_() if isinstance(medium, Tensor) else medium

    def _shown_still(self, kind: str, picture: Image.Image, total: int, fps: float | None) -> list[Any]:
        """The media of a picture, as an image or as a video of so many frames that are all alike."""
        if kind == "image":
            return [self.image(picture, "An image")]
        numbers = self.frame_numbers(total, fps)
        return self.video(Frames((picture,) * len(numbers), tuple(numbers), total, fps), "A video")

    def blanks(self, kind: str) -> list[Any]:
        """As many blank media as one image or one video has marks for."""
        media: list[Any] = []
        marks = 1 if kind == "image" else self.video_marks
        while sum(map(self.marks, media)) < marks:
            media.append(self.blank(kind))
        return media

    def usual_tokens(self, kind: str, settings: PlanSettings | None) -> int:
        """Visual tokens of an `image` or a `video` before it is seen, to order samples by: of pictures of 640 x 480."""
        if settings is None:
            return 0
        media = self._shown_still(kind, Image.new("RGB", USUAL_SIZE), _USUAL_FRAMES, _USUAL_FPS)
        return sum(sum(self.tokens(medium, settings)) for medium in media)

    @abstractmethod
    def question(self, text: str, media: Sequence[Any]) -> str:
        """A human turn with a mark for each of its media: where it says so, else in front.

        Args:
            text: as written.
            media: media of this turn.

        Raises:
            ValueError: if the text has another number of marks.
        """

    def asked(self, parts: Sequence[str | Sequence[Any]]) -> str:
        """A human turn that was sent in parts, in their order; `<image>` and `<video>` in its words are words.

        Args:
            parts: texts, and the media of each image or video as a list.

        Raises:
            ValueError: as in `question`.
        """
        words = [isinstance(part, str) for part in parts]
        media = [medium for part in parts if not isinstance(part, str) for medium in part]
        in_front = words == sorted(words) or (self.media_first and words == sorted(words, reverse=True))
        texts = [words_of_others(part, ()) if isinstance(part, str) else self.written_mark(part) for part in parts]
        kept = [text for text, is_text in zip(texts, words, strict=True) if is_text] if in_front else texts
        return self.question(self.between_parts.join(kept), media)

    def written_mark(self, media: Sequence[Any]) -> str:
        """How the place of one image, or of one video, is written in a question; its media as `image`, `video` give."""
        return DEFAULT_IMAGE_TOKEN * sum(map(self.marks, media))

    @property
    def key(self) -> str | None:
        """Stands for all that `taught` and `encode` depend on but the tokenizer and the finder; see `encoding_key`."""
        return encoding_key(type(self), self.encoding_facts())

    def encoding_facts(self) -> list[str]:
        """What they depend on beside those and the code of the class."""
        return [self.template, str(self.video_marks)]

    @abstractmethod
    def marked(self, turn: str) -> str:
        """A human turn whose marks are written as the model wants them."""

    def taught(self, turn: str, kinds: Collection[str]) -> str:
        """A human turn of a training record, its marks where the family's training has them, written for the model.

        Here they stay where they are.

        Args:
            turn: as written in a record with media, `<image>` and `<video>` where they go.
            kinds: kinds of the record's media, `image` and `video`; marks of another are words.

        Raises:
            ValueError: if the family does not train on such a turn.
        """
        return self.marked(words_of_others(turn, kinds))

    @abstractmethod
    def encode(
        self,
        turns: Sequence[str],
        with_media: bool,
        find_salient: SalientFinder = salient_spans,
        system: str | None = None,
        ask: bool = False,
    ) -> EncodedText:
        """A conversation as ids, labels and voters; its media need not be read.

        An image is one `IMAGE_TOKEN_INDEX`, a video `video_marks`.

        Args:
            turns: texts, human and assistant alternating, human ones of `question` or `marked`.
            with_media: without, marks are text like any other.
            find_salient: says which words of a question are salient.
            system: system prompt used instead of the template's.
            ask: whether the last turn is a question to be answered; else answers are labelled.

        Raises:
            ValueError: if the turns do not go with the template.
        """

    @abstractmethod
    def collator(self, image_size: int | None = None, settings: PlanSettings | None = None) -> Collator:
        """What makes a batch of samples: arguments of the model, and what training reports.

        Args:
            settings: settings of the model's plans, for the batch to bring its own; None leaves planning to the model.
            image_size: side of the images of the tower; None in a run without media. A batch of text alone then brings
                something for the tower, which has to run on every rank in every step.
        """

    def prompt(self, turns: Sequence[str], media: Sequence[Any], voting: int = -1, system: str | None = None) -> Sample:
        """A conversation that ends in a question, to be answered.

        Args:
            turns: as in `encode`.
            media: media of all turns.
            voting: number of the question whose tokens may vote on visual tokens, by default the last.
            system: system prompt used instead of the template's.
        """
        encoded = self.encode(turns, bool(media), system=system, ask=True)
        return self.sample(one_question(encoded, voting), media)

    def written(self, turns: Sequence[str]) -> str:
        """The text of a prompt as the template writes it; turns as in `encode`, the last one a question."""
        ids = self.encode(turns, True, ask=True).input_ids
        return str(self.tokenizer.decode([token for token in ids if token >= 0]))

    def conversation(self, turns: Sequence[str], media: Sequence[Any]) -> Sample:
        """A conversation that ends in an answer, all answers labelled; arguments as in `prompt`."""
        return self.sample(self.encode(turns, bool(media)), media)

    def sample(self, encoded: EncodedText, media: Sequence[Any]) -> Sample:
        """An encoded conversation with its media; where placeholders have their full length, they get it here."""
        return encoded.tensors() | {"images": list(media), "sample_id": None, "truncated": encoded.truncated}

    def visual_tokens(self, sample: Sample, settings: PlanSettings | None) -> int:
        """Visual tokens of a sample in the language model.

        Args:
            sample: what `sample` gives.
            settings: `plan_settings` of the model; None where it plans itself, without `IMAGE_TOKEN_INDEX` in ids.
        """
        return 0 if settings is None else sum(sum(self.tokens(medium, settings)) for medium in sample["images"])

    def length(self, sample: Sample, settings: PlanSettings | None) -> int:
        """Tokens of a sample in the language model, its media included; arguments as in `visual_tokens`."""
        ids: Tensor = sample["input_ids"]
        if settings is None:
            return len(ids)
        return int((ids != IMAGE_TOKEN_INDEX).sum()) + self.visual_tokens(sample, settings)

    def merged_away(self, sample: Sample, v2v: V2VConfig | None) -> int:
        """How many of the placeholders in a sample's ids V2V leaves out; 0 where plans count, or nothing says it."""
        return 0

    def for_evaluation(self) -> ModelInputs:
        """The same without what is changed at random for training alone."""
        return self

    def cut_encoded(self, sample: Sample, max_length: int) -> Sample:
        """As `cut`, by the ids of the encoded text, in which a medium counts as many as it has marks."""
        ids: Tensor = sample["input_ids"]
        if len(ids) <= max_length:
            return sample
        marks = [[1] * self.marks(medium) for medium in sample["images"]]
        return shortened(sample, *kept_tokens(ids.tolist(), marks, max_length))

    def cut(self, sample: Sample, max_length: int, settings: PlanSettings | None) -> Sample:
        """A training sample, its end cut off where it has more than `max_length` tokens in the language model.

        A medium is kept whole or not at all, and a question that loses its answer does not vote.

        Raises:
            ValueError: if the family cannot shorten it.
        """
        length = self.length(sample, settings)
        if length <= max_length:
            return sample
        media: Sequence[Any] = sample["images"]
        if media and settings is None:
            raise ValueError(
                f"The conversation takes {length} tokens with its images and videos, but {max_length} are asked for; "
                "raise --model_max_length, or make them smaller."
            )
        counts = [self.tokens(medium, settings) for medium in media] if settings is not None else []
        return shortened(sample, *kept_tokens(sample["input_ids"].tolist(), counts, max_length))

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Samples as arguments of the model's `forward`, `labels` among them; without these, of its `generate`."""
        collated = self.collator()(samples)
        return {name: collated[name] for name in self.arguments if name in collated}
