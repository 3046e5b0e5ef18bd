"""A loaded model that is asked: turns and media in, text out. Every program that asks a model does it here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.checkpoints.opening import open_model
from llava.compression.config import CompressionConfig
from llava.data.families import family_of
from llava.data.families.base import Sample
from llava.data.frames import FrameSampling
from llava.data.media_limits import MediaLimits
from llava.inference.batches import PreparedBatch, Preparer, PromptLike, Task, media_of, read_ahead, to_device
from llava.inference.ending import answer_text, end_tokens, stopping_at
from llava.inference.generation import CountingCache, GenerationSettings
from llava.mm_utils import model_name_of
from llava.model.cache_name import cache_of
from llava.model.finite import NOT_FINITE, FiniteLogits, NonFiniteLogitsError

Budget = CompressionConfig | str | dict[str, Any] | None
"""What a model takes as its compression: an object, a preset's name, a YAML file, a mapping; None is its own."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model to open, and in which form it is asked.

    Attributes:
        path, base: as in `open_model`.
        compression: the budget.
        dtype: data type of the weights, as text; None is float16 on a GPU, float32 on a CPU.
        bits: 4 or 8 where the language model is quantised.
        template: conversation template; None is that of training.
        usual_template: where the model records none; None goes by its name.
        image_opening: `upright` or `llava`, see `llava.common.image_opening`; None for the model's.
        num_frames: frames of a video that are shown; None for as many as the family usually takes.
        limits: limits of the size of images and videos, where the model's processor keeps it.
    """

    path: str
    base: str | None = None
    compression: Budget = None
    dtype: str | None = None
    bits: int | None = None
    template: str | None = None
    usual_template: str | None = None
    image_opening: str | None = None
    num_frames: int | None = None
    limits: MediaLimits = field(default_factory=MediaLimits)


@dataclass(frozen=True)
class Generated:
    """What one call of `generate` gave.

    Attributes:
        sequences: new ids [B, n].
        texts: answers, a row each, without what ended them.
        cache: keys and values of prompt and answer; None where the model kept none.
        broken: rows that have no answer, because the model computed NaN or infinity for them.
    """

    sequences: Tensor
    texts: list[str]
    cache: Any
    broken: list[int]

    def require_finite(self) -> None:
        """Say that a row has no answer.

        Raises:
            llava.model.finite.NonFiniteLogitsError: if one has none.
        """
        if self.broken:
            raise NonFiniteLogitsError(NOT_FINITE)


@dataclass(frozen=True)
class Outcome:
    """The answers of a task, and why prompts without one have none.

    Attributes:
        task: task as it was dealt out.
        texts: answers, by place in the task.
        visual_tokens: visual tokens that a layer saw, mean over layers, of each that shows an image.
        problems: why there is no answer, by place in the task.
        seconds: since the outcome before, waiting for images included.
    """

    task: Task
    texts: dict[int, str]
    visual_tokens: dict[int, float]
    problems: dict[int, str]
    seconds: float


class Engine:
    """A model on its device, with what makes its inputs. Several callers may share one, in threads too.

    Args:
        model, tokenizer, processor: results of `open_model`; without a tower there is no processor.
        template, usual_template, image_opening, num_frames: as in `ModelSpec`.
        name: name of the model; None for what it was loaded from.

    Attributes:
        inputs: makes inputs of the model, as its family says.

    Raises:
        ValueError: if there is no such template or opening, or no family for the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        processor: Any,
        template: str | None = None,
        usual_template: str | None = None,
        image_opening: str | None = None,
        num_frames: int | None = None,
        name: str | None = None,
    ) -> None:
        family = family_of(model.config)
        name = name or model_name_of(model.config.name_or_path or "llava")
        template = family.template_for(model.config, name, template, usual_template)
        self.model = model
        self.tokenizer = tokenizer
        sampling = FrameSampling(num_frames)
        self.inputs = family(model.config, tokenizer, processor, template, image_opening, sampling)

    @classmethod
    def open(cls, spec: ModelSpec, device: str, device_map: Any = "auto") -> Engine:
        """Load a model.

        Args:
            spec: which.
            device, device_map: as in `open_model`.

        Raises:
            ValueError: if it cannot be opened, or something in `spec` does not fit it.
        """
        name = model_name_of(spec.path)
        more: dict[str, Any] = {} if spec.dtype is None else {"dtype": spec.dtype}
        model, processor, tokenizer, _ = open_model(
            spec.path,
            spec.base,
            name=name,
            bits=spec.bits or 16,
            device=device,
            device_map=device_map,
            compression=spec.compression,
            **more,
        )
        processor = spec.limits.applied_to(processor)
        form = (spec.template, spec.usual_template, spec.image_opening, spec.num_frames)
        return cls(model, tokenizer, processor, *form, name)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def media(self, prompt: PromptLike) -> list[Any]:
        """What a prompt shows, read and prepared; see `llava.inference.batches.media_of`."""
        return media_of(prompt, self.inputs)

    def sample(self, prompt: PromptLike, compression: CompressionConfig | None = None) -> Sample:
        """One prompt as the family encodes it.

        Args:
            prompt: prompt to encode.
            compression: budget under which it has to fit the model; None for the model's own.

        Raises:
            ValueError: if its media cannot be read or shown, do not go with its marks, or it has more tokens than the
                model can number.
        """
        return Preparer(self.inputs, self.model.plan_settings(compression)).sample(prompt)[0]

    def batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Samples as arguments of the model's `forward`, on its device."""
        batch: dict[str, Any] = to_device(self.inputs.batch(samples), self.device)
        return batch

    def asked(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Samples as arguments of the model's `generate`, on its device: those of `batch` without labels."""
        return {name: value for name, value in self.batch(samples).items() if name != "labels"}

    def answer(self, prompts: Sequence[PromptLike], settings: GenerationSettings) -> list[str]:
        """Answers to a batch of prompts, in order.

        Args:
            prompts: prompts; at least one.
            settings: settings of generation.

        Raises:
            llava.model.finite.NonFiniteLogitsError: if the model computed NaN or infinity for one of them.
            ValueError: as in `sample`.
        """
        generated = self.generate(self.asked([self.sample(prompt) for prompt in prompts]), settings)
        generated.require_finite()
        return generated.texts

    def answer_tasks(
        self, tasks: Iterable[Task], settings: GenerationSettings, loader_workers: int = 0
    ) -> Iterator[Outcome]:
        """Answer tasks one after the other; a prompt that cannot be answered keeps none from its answer.

        Args:
            tasks: some are taken ahead, for their images to be read.
            settings: settings of generation.
            loader_workers: processes that read images ahead.

        Raises:
            ValueError: if the settings do not fit the model.
        """
        preparer = Preparer(self.inputs, self.model.plan_settings())
        began = time.perf_counter()
        for batch in read_ahead(preparer, tasks, loader_workers):
            texts, tokens, problems = self._answer(batch, settings) if batch.rows else ({}, {}, {})
            now = time.perf_counter()
            yield Outcome(batch.task, texts, tokens, batch.problems | problems, now - began)
            began = now

    def _answer(
        self, batch: PreparedBatch, settings: GenerationSettings
    ) -> tuple[dict[int, str], dict[int, float], dict[int, str]]:
        """Answers, visual tokens and problems, by place in the task."""
        if settings.options().get("do_sample"):
            torch.manual_seed(settings.seed + min(batch.task.numbers))
        inputs = to_device(batch.inputs, self.device)
        if self.model.is_staged(settings.options().get("compression")):
            cache = CountingCache(self.model.decoder.config)
            generated = self.generate(inputs, settings, past_key_values=cache)
            averages = cache.averages(settings.num_beams or 1)
        else:  # the stock model, whose layers all see every visual token
            generated = self.generate(inputs, settings)
            averages = self.model.is_placeholder(inputs["input_ids"]).sum(dim=1).tolist()
        problems = {batch.rows[number]: NOT_FINITE for number in generated.broken}
        answers = {row: text for row, text in zip(batch.rows, generated.texts, strict=True) if row not in problems}
        seen = zip(batch.rows, averages, batch.shows, strict=True)
        return answers, {row: mean for row, mean, shows in seen if shows and row in answers}, problems

    def generate(self, inputs: Mapping[str, Any], settings: GenerationSettings, **more: Any) -> Generated:
        """One call of the model's `generate`, each row of which ends where its answer does.

        Args:
            inputs: arguments of the model, on its device, such as those of `asked`.
            settings: settings of generation.
            more: arguments of this call alone, such as `compression`, `streamer`, `past_key_values`.
        """
        options = end_tokens(self.model, self.tokenizer) | settings.options() | more
        given = options.get("stopping_criteria") or ()
        options["stopping_criteria"] = [*given, *stopping_at(self.inputs.stop, self.tokenizer)]
        watch = FiniteLogits(options.get("num_beams") or 1)
        output = self.model.generate(**inputs, **watch.added_to(options), return_dict_in_generate=True)
        prompt = inputs["input_ids"].shape[1] if self.model.returns_prompt else 0
        new = output.sequences[:, prompt:]  # [B, n]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        answers = [answer_text(text, self.inputs.stop) for text in texts]
        return Generated(new, answers, cache_of(output), watch.broken)
