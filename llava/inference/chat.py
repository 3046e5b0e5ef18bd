"""A conversation of several turns with a loaded model.

    chat = Chat(model, tokenizer, image_processor, compression="duet-192")
    for piece in chat.ask("What is on the table?", [image]):
        print(piece, end="", flush=True)
    print(chat.answer("And what is under it?"))

Visual tokens that the first question did not need are gone when the second one arrives. Therefore each question
computes the whole conversation again and chooses its own tokens (`reencode=True`). With `reencode=False` the KV cache
is kept and only new text is computed, which is faster and sees what the first question left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from llava.compression.config import CompressionConfig
from llava.constants import LITERAL_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN
from llava.data.families.base import Sample
from llava.data.frames import Frames
from llava.inference.batches import Prompt
from llava.inference.engine import Budget, Engine, Generated
from llava.inference.generation import GenerationSettings
from llava.inference.question_text import check_question
from llava.inference.streaming import Answering
from llava.inference.usage import Usage
from llava.model.staged_cache import StagedCache
from llava.model.trace import CompressionTrace, trace_batch, units_of

DEFAULT_NEW_TOKENS = 512
Shown = Image.Image | Frames
"""What a question shows: an image, or the frames of a video."""


@dataclass(frozen=True)
class ChatRequest:
    """What one question asks of the model.

    Attributes:
        turns: the whole conversation, ending with the question.
        sample: the same, encoded; its `query_mask` holds the voters of one question only.
        pixels: all images and videos so far, as the family prepared them.
        compression: the budget.
    """

    turns: list[str]
    sample: Sample
    pixels: list[Any]
    compression: CompressionConfig

    @property
    def ids(self) -> list[int]:
        """The conversation as ids, images as placeholders."""
        ids: list[int] = self.sample["input_ids"].tolist()
        return ids


class Chat:
    """One conversation with a loaded model. Several may share a model, in threads too.

    Args:
        model, tokenizer, image_processor: results of `load_pretrained_model`.
        conv_mode: key of `conv_templates`; None is that of training, or goes by the model's name.
        compression: compression used instead of the model's own: an object, preset's name, YAML file or mapping.
        reencode: whether each question computes the whole conversation again, to choose its own visual tokens; else
            later questions see those that the first one left, and later turns take no images.
        generation: options of transformers' `generate`, such as `max_new_tokens`, `do_sample`, `temperature`.

    Attributes:
        images: all images and videos of the conversation, in order.
        usage: what the last answer took; None before the first and after beam search.

    Raises:
        ValueError: if a setting is unknown or does not fit the model.
    """

    _cache: StagedCache | None
    _held: list[int]

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        conv_mode: str | None = None,
        compression: Budget = None,
        reencode: bool = True,
        **generation: Any,
    ) -> None:
        self._begin(Engine(model, tokenizer, image_processor, conv_mode), compression, reencode, generation)

    @classmethod
    def over(
        cls, engine: Engine, settings: GenerationSettings, compression: Budget = None, reencode: bool = True
    ) -> Chat:
        """A conversation with a model that is loaded already; other arguments and errors as in the constructor."""
        chat = cls.__new__(cls)
        chat._begin(engine, compression, reencode, settings.options())
        return chat

    def _begin(self, engine: Engine, compression: Budget, reencode: bool, generation: dict[str, Any]) -> None:
        self.engine = engine
        self.model = engine.model
        self.tokenizer = engine.tokenizer
        self.image_processor = engine.inputs.processor
        self.reencode = reencode
        self.settings = self._with_defaults(generation)
        self.set_compression(compression)
        self._asking = False
        self.reset()

    @property
    def conv_mode(self) -> str:
        """The conversation template."""
        return self.engine.inputs.template

    def reset(self) -> None:
        """Forget the conversation."""
        self.images: list[Shown] = []
        self.usage: Usage | None = None
        self._turns: list[str] = []
        self._pixels: list[Any] = []
        self._prefilled: ChatRequest | None = None
        self._forget_cache()

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Questions and answers so far; questions with their image marks, and `\\<image>` where they mean the word."""
        questions = (turn.replace(LITERAL_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN) for turn in self._turns[::2])
        return list(zip(questions, self._turns[1::2], strict=True))

    @property
    def compression(self) -> CompressionConfig:
        """The budget of the next question."""
        return self.model.compression if self._compression is None else self._compression

    def set_compression(self, compression: Budget) -> None:
        """Choose another budget from the next question on; None is the model's own.

        Raises:
            ValueError: if it is unknown or does not fit the model.
        """
        self._compression = None if compression is None else self.model.checked(compression)
        self._forget_cache()

    def ask(self, question: str, images: Sequence[Shown] = ()) -> Iterator[str]:
        """Ask, and read the answer piece by piece; the conversation grows when the last piece was read.

        Leaving the iteration early ends the answer there, and what was read so far stands in the conversation. An
        error leaves the conversation as it was.

        Args:
            question: text, with as many `<image>` as `images` or none to have them in front; `\\<image>` is the word. A
                video's mark is `<video>`, where the model's family knows it, else an `<image>` for each of its frames.
            images: RGB images of this turn, and `Frames` of videos (`llava.inference.typed_videos.read_video`), in the
                order of their marks.

        Raises:
            ValueError: if the question is blank or no text, marks and images do not agree, the conversation is too long
                for the model, an image comes when it cannot be seen any more, or the answer before this one is still
                being read.
        """
        if images and self._turns and not self.reencode:
            raise ValueError(
                "Images cannot be added to a conversation with reencode=False, which keeps the visual tokens that the "
                "first question left; start a new one, or use reencode=True."
            )
        self._check_idle()
        check_question(question)
        new = self.engine.media(Prompt(question, tuple(images)))
        marked = self.engine.inputs.question(question, new)
        return self._stream(self._request([*self._turns, marked], [*self._pixels, *new]), list(images))

    def answer(self, question: str, images: Sequence[Shown] = ()) -> str:
        """Ask, and wait for the whole answer; arguments and errors as in `ask`."""
        for _ in self.ask(question, images):
            continue
        return self.turns[-1][1]

    @property
    def last_request(self) -> ChatRequest | None:
        """The prompt whose visual tokens the last answer saw; None before the first."""
        return self._prefilled

    def trace(self) -> tuple[CompressionTrace, list[Tensor]]:
        """What became of every patch when the visual tokens that the last answer saw were chosen; and the images.

        Computes that prefill once more.

        Returns:
            the trace, and the images, crops and frames [3, height, width] as they went into the tower.

        Raises:
            ValueError: if no image has been shown, or what the tower sees are no squares of one size.
        """
        request = self._prefilled
        if request is None or not request.pixels:
            raise ValueError("No question with an image has been answered yet; ask one first.")
        inputs = self.engine.asked([request.sample])
        units = [unit for medium in request.pixels for unit in units_of(medium)]
        return trace_batch(self.model, inputs, request.pixels, request.compression), units

    def _stream(self, request: ChatRequest, images: list[Shown]) -> Iterator[str]:
        self._check_idle()
        if request.turns[:-1] != self._turns:
            raise ValueError("The conversation has gone on since this was asked; ask again.")
        self._asking = True
        answering = Answering(
            lambda streamer, stop_when: self._generate(request, streamer, stop_when),
            self.engine.tokenizer,
            self.engine.inputs.stop,
        )
        try:
            yield from answering
            if self._beams > 1:
                yield answering.output.texts[0]
        finally:
            self._asking = False
            self._remember(request, images, answering.output)

    def _generate(self, request: ChatRequest, streamer: Any, stop_when: Any) -> Generated:
        """One call of the model's `generate`, behind the cache if there is one that fits.

        Raises:
            llava.model.finite.NonFiniteLogitsError: if the model computed NaN or infinity.
        """
        more: dict[str, Any] = {
            "stopping_criteria": [stop_when, *self.settings.more.get("stopping_criteria", ())],
            "streamer": streamer if self._beams == 1 else None,
        }
        known = self._known(request.ids)
        if self._cache is not None and known:
            cache, held = self._cache, len(self._held)
            self._forget_cache()  # an error halfway leaves it with layers that do not fit each other
            cache.crop(known - held)
            more_ids = request.sample["input_ids"][None, known:].to(self.engine.device)
            inputs = {"input_ids": more_ids, "past_key_values": cache}
        else:
            self._prefilled = request
            inputs = self.engine.asked([request.sample])
            more["compression"] = request.compression
        generated = self.engine.generate(inputs, self.settings, **more)
        generated.require_finite()
        return generated

    def _remember(self, request: ChatRequest, images: list[Shown], generated: Generated | None) -> None:
        """Append a question and its answer to the conversation; without an answer it stays as it was."""
        if generated is None:
            return
        self._turns = [*request.turns, generated.texts[0]]
        self._pixels = request.pixels
        self.images = self.images + images
        held = request.ids + generated.sequences[0].tolist()[:-1]  # the last token has been chosen, but not computed
        self.usage = None if self._beams > 1 else self._usage(request, generated.cache, len(held) - len(request.ids))
        if not self.reencode and self.model.takes_filled_cache:  # else all is computed anew, by the same voters
            self._cache, self._held = generated.cache, held

    def _usage(self, request: ChatRequest, cache: DynamicCache, said: int) -> Usage:
        """What an answer took, of which `said` tokens stand in the cache behind the prompt."""
        inputs, sample = self.engine.inputs, request.sample
        settings = self.model.plan_settings(CompressionConfig())
        patches = inputs.visual_tokens(sample, settings)
        text = inputs.length(sample, settings) - patches
        return Usage.of(cache, text + said, patches)

    def _request(self, turns: list[str], pixels: list[Any]) -> ChatRequest:
        sample = self.engine.inputs.prompt(turns, pixels, -1 if self.reencode else 0)
        settings = self.model.plan_settings(self.compression)
        length, limit = self.engine.inputs.length(sample, settings), self.engine.inputs.limit
        if length >= limit:
            raise ValueError(
                f"The conversation takes {length} tokens, but the model can number {limit}; start a new one, or use a "
                "smaller budget of visual tokens."
            )
        return ChatRequest(turns, sample, pixels, self.compression)

    def _known(self, ids: list[int]) -> int:
        """Number of leading ids of a prompt that the cache holds; 0 where it cannot be used.

        Read from the front, for the answer's text may have other ids than those that were generated.
        """
        same = next((n for n, (a, b) in enumerate(zip(ids, self._held, strict=False)) if a != b), None)
        known = min(len(self._held), len(ids) - 1) if same is None else same
        return 0 if bool(self.model.is_placeholder(torch.tensor(ids[known:])).any()) else known

    @property
    def _beams(self) -> int:
        return self.settings.options().get("num_beams", 1)

    def _forget_cache(self) -> None:
        self._cache = None
        self._held = []

    def _check_idle(self) -> None:
        if self._asking:
            raise ValueError("The last answer is still being read; read it to its end, or close it.")

    def _with_defaults(self, generation: dict[str, Any]) -> GenerationSettings:
        if generation.get("num_return_sequences", 1) > 1:
            raise ValueError("A conversation goes on with one answer; leave num_return_sequences out.")
        if generation.get("num_beams", 1) > 1 and not self.reencode:
            raise ValueError("Beam search does not keep the cache of one answer; use reencode=True, or num_beams=1.")
        self.engine.inputs.with_roles(self.conv_mode)
        own = {} if self.model.generation_config.max_new_tokens else {"max_new_tokens": DEFAULT_NEW_TOKENS}
        return GenerationSettings(more=own | generation)
