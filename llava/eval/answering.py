"""A loaded model that answers batches of questions and counts the visual tokens that its layers see."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.compression.config import CompressionConfig
from llava.compression.layout import TokenLayout
from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.asking import Batch, Preparer, Task, read_ahead, to_device
from llava.inference.ending import answer_text, ending_options, needed_stop_string
from llava.inference.inputs import sampling
from llava.model.builder import load_pretrained_model
from llava.model.finite import NOT_FINITE, FiniteLogits
from llava.model.staged_cache import StagedCache


@dataclass(frozen=True)
class ModelSource:
    """Which model to load, and where.

    Attributes:
        model_path, model_base: as in `load_pretrained_model`.
        device: "cpu", "cuda" or "cuda:1".
        dtype: of the weights, as text.
        load_8bit, load_4bit: quantise the language model.
        compression: the budget, as `CompressionConfig.to_dict` gives it.
    """

    model_path: str
    model_base: str | None
    device: str
    dtype: str
    load_8bit: bool
    load_4bit: bool
    compression: dict[str, Any]


@dataclass(frozen=True)
class Manner:
    """How to ask.

    Attributes:
        conv_mode: key of `conv_templates`.
        max_new_tokens: longest answer.
        temperature, top_p, num_beams: of generation, as in LLaVA.
        seed: of sampling.
        num_frames: of a video that are shown.
        image_opening: `upright` or `llava`, see `llava.common.image_opening`; None for the model's.
        loader_workers: processes that read images ahead.
    """

    conv_mode: str
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    seed: int = 0
    num_frames: int = 8
    image_opening: str | None = None
    loader_workers: int = 0

    def generation(self) -> dict[str, Any]:
        """Options of `generate`.

        Raises:
            ValueError: if one is out of range.
        """
        return sampling(self.temperature, self.top_p, self.num_beams, self.max_new_tokens)


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
        task: as it was dealt out.
        texts: answers, by place in the task.
        visual_tokens: for those of them that show an image: visual tokens that a layer saw, mean over layers.
        problems: why there is no answer, by place in the task.
        seconds: since the outcome before, waiting for images included.
    """

    task: Task
    texts: dict[int, str]
    visual_tokens: dict[int, float]
    problems: dict[int, str]
    seconds: float


@dataclass
class Counts:
    """Visual tokens of each row in each stage of the decoder, as they enter it.

    Attributes:
        first_layers: of the stages.
        tokens: int64 [B] of each stage.
    """

    first_layers: list[int] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)

    def averages(self, num_layers: int, beams: int) -> list[float]:
        """Mean over layers for each prompt, of which every one has `beams` rows."""
        ends = [*self.first_layers[1:], num_layers]
        spans = [end - first for first, end in zip(self.first_layers, ends, strict=True)]
        by_stage = torch.stack(self.tokens).cpu()[:, ::beams]
        totals = (by_stage * torch.tensor(spans)[:, None]).sum(dim=0)
        return [total / num_layers for total in totals.tolist()]


class CountingCache(StagedCache):
    """A cache that counts the visual tokens of the prompt in each stage.

    Attributes:
        counts: filled by the prefill.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.counts = Counts()

    def begin_stage(self, first_layer: int, layout: TokenLayout) -> None:
        """As in `StagedCache`."""
        super().begin_stage(first_layer, layout)
        self.counts.first_layers.append(first_layer)
        self.counts.tokens.append((layout.is_visual & layout.valid).sum(dim=1))


class Answerer:
    """A model on its device.

    Args:
        tokenizer, model, image_processor: of `load_pretrained_model`.
        compression: the budget to answer under.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, model: Any, image_processor: Any, compression: CompressionConfig
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.image_processor = image_processor
        self.compression = compression

    @classmethod
    def load(cls, source: ModelSource) -> Answerer:
        """Load a model.

        Raises:
            ValueError: if it cannot be opened, or the budget does not fit it.
        """
        compression = CompressionConfig.from_dict(source.compression)
        tokenizer, model, image_processor, _ = load_pretrained_model(
            source.model_path, source.model_base, None, source.load_8bit, source.load_4bit,
            device=source.device, device_map={"": source.device}, dtype=source.dtype, compression=compression,
        )  # fmt: skip
        return cls(tokenizer, model, image_processor, compression)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def answer(self, tasks: Iterable[Task], manner: Manner) -> Iterator[Outcome]:
        """Answer tasks one after the other.

        Args:
            tasks: some are taken ahead, for their images to be read.
            manner: how to ask.

        Raises:
            ValueError: if the manner is out of range or does not fit the model.
        """
        stop = needed_stop_string(self.tokenizer, manner.conv_mode)
        generation = manner.generation() | ending_options(self.model, self.tokenizer, stop)
        tower = self.model.get_vision_tower()
        per_image = 0 if tower is None else self.model.visual_tokens_per_image(self.compression)
        preparer = Preparer(
            self.tokenizer, self.image_processor, self.model.config, manner.conv_mode, per_image, manner.num_frames,
            manner.image_opening,
        )  # fmt: skip
        began = time.perf_counter()
        for batch in read_ahead(preparer, tasks, manner.loader_workers):
            texts, tokens, problems = self._generate(batch, generation, manner) if batch.rows else ({}, {}, {})
            now = time.perf_counter()
            yield Outcome(batch.task, texts, tokens, batch.problems | problems, now - began)
            began = now

    def _generate(
        self, batch: Batch, generation: dict[str, Any], manner: Manner
    ) -> tuple[dict[int, str], dict[int, float], dict[int, str]]:
        """Answers, visual tokens and problems, by place in the task."""
        if generation["do_sample"]:
            torch.manual_seed(manner.seed + min(batch.task.numbers))
        cache = CountingCache(self.model.config)
        inputs = to_device(batch.inputs, self.device)
        watch = FiniteLogits(manner.num_beams)
        options = watch.added_to(generation)
        ids = self.model.generate(**inputs, compression=self.compression, past_key_values=cache, **options)
        problems = {batch.rows[number]: NOT_FINITE for number in watch.broken}
        stop = needed_stop_string(self.tokenizer, manner.conv_mode)
        texts = [answer_text(text, stop) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        averages = cache.counts.averages(self.model.config.num_hidden_layers, manner.num_beams)
        shows_image = (batch.inputs["input_ids"] == IMAGE_TOKEN_INDEX).any(axis=1).tolist()
        seen = {row: mean for row, mean, shows in zip(batch.rows, averages, shows_image, strict=True) if shows}
        answers = {row: text for row, text in zip(batch.rows, texts, strict=True) if row not in problems}
        return answers, {row: mean for row, mean in seen.items() if row in answers}, problems
