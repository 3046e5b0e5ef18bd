"""The model of this project in lmms-eval.

    lmms-eval --model duet_llava --model_args pretrained=CHECKPOINT,compression=duet-192 --tasks mme --batch_size 8

Data-parallel: `accelerate launch --num_processes 8 -m lmms_eval ...`, one model per process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from llava.common.number_flags import count
from llava.constants import DEFAULT_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN
from llava.data.frames import Frames
from llava.data.video import open_video
from llava.eval.harnesses.harness import class_or_object, losses, open_engine, prompt_of
from llava.inference.batches import Prompt
from llava.inference.engine import ModelSpec
from llava.inference.generation import GenerationSettings
from llava.inference.loading_flags import bits_of

DEFAULT_NEW_TOKENS = 1024
_DIGITS = 10
_NOT_A_STOP = "\n\n"
"""lmms-eval's default `until`, made for base models; it would cut long answers after their first paragraph."""

_Base: Any = class_or_object("lmms_eval", "lmms_eval.api.model", "lmms")


class DuetLlava(_Base):
    """A LLaVA with or without compression, for lmms-eval's tasks.

    Args:
        pretrained: folder or hub name, as in `load_pretrained_model`.
        model_base: language model of a projector or LoRA folder.
        compression: preset, YAML file or "none"; by default what the checkpoint was trained with.
        conv_template: key of `conv_templates`; by default that of training, and where the model records none that of
            LLaVA-1.5, as for lmms-eval's own `llava`.
        batch_size: questions per batch.
        device: by default a GPU where there is one; under `accelerate launch` each process takes its own.
        dtype: data type of the weights; by default float16 on a GPU, float32 on a CPU.
        load_8bit, load_4bit: quantise the language model.
        num_frames: taken of a video; None for as many as the model is usually shown.
        image_opening: `upright` or `llava`, see `llava.common.image_opening`; by default as the model was trained.
        max_batch_size: accepted, for lmms-eval passes it; not used.

    Raises:
        ValueError: if the model cannot be opened or a value is out of range.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        model_base: str | None = None,
        compression: str | None = None,
        conv_template: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        load_8bit: bool = False,
        load_4bit: bool = False,
        num_frames: int | str | None = None,
        image_opening: str | None = None,
        max_batch_size: int | str | None = None,
    ) -> None:
        super().__init__()
        if not pretrained:
            raise ValueError("--model_args has no pretrained=...; give the folder or hub name of a model.")
        batch_size = _count("batch_size", batch_size)
        frames = None if num_frames is None else _count("num_frames", num_frames)
        for name, value in {"load_8bit": load_8bit, "load_4bit": load_4bit}.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r} in --model_args; give True or False.")
        self._rank, self._world_size = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self.accelerator = Accelerator()
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = str(self.accelerator.device)
        self.batch_size = batch_size
        bits = bits_of(load_8bit, load_4bit)
        spec = ModelSpec(
            str(pretrained), model_base, compression, dtype, bits, conv_template, "vicuna_v1", image_opening, frames
        )
        self._engine = open_engine(spec, device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._engine.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers to lmms-eval's requests, in order.

        Of their settings `max_new_tokens` (1024 where missing), `temperature` (0), `top_p` (not beside a temperature
        of 0), `num_beams` (1) and `do_sample` are followed, and `until`, except for its default of an empty line.
        Images are shaped as the checkpoint says.
        """
        arguments = [request.args for request in requests]
        answers: list[str] = [""] * len(arguments)
        with self._bar(len(arguments)) as bar:
            for numbers in self._batches([(args[1], args[0]) for args in arguments]):
                prompts = []
                for number in numbers:
                    context, _, to_visual, doc_id, task, split = arguments[number]
                    prompts.append(self._prompt(context, to_visual(self.task_dict[task][split][doc_id])))
                settings = arguments[numbers[0]][1]
                for number, text in zip(numbers, self._answer(prompts, settings), strict=True):
                    answers[number] = text
                    self.cache_hook.add_partial("generate_until", (arguments[number][0], settings), text)
                bar.update(len(numbers))
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answers to requests whose later questions depend on earlier answers, one list of answers a request."""
        results = []
        for request in tqdm(requests, desc="Answering", disable=self._rank != 0):
            context, settings, to_visual, to_text, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            said: list[str] = []
            known, visuals = None, to_visual(doc)
            while True:
                answer = self._answer([self._prompt(context, visuals)], settings)[0]
                # The next question may repeat it, and shows no image where an answer says the word.
                said = [*said, answer.replace(DEFAULT_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN)]
                visuals, context, is_over, said, known = to_text(
                    doc, previous_output=said, round_idx=len(said), previous_round_info=known
                )
                said = list(said)
                if is_over:
                    break
            results.append([text.replace(LITERAL_IMAGE_TOKEN, DEFAULT_IMAGE_TOKEN) for text in said])
        return results

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """For each request the mean negative log-probability of its continuation, and whether greedy decoding says it.

        lmms-eval's multiple choice takes the option with the *smallest* number, for its adapters return losses.

        Returns:
            Pairs; each wrapped in lmms-eval's `GenerationResult` where there is one, because version 0.7.3 turns bare
            pairs into text, which its own multiple choice cannot read.
        """
        arguments = [request.args for request in requests]
        results: list[Any] = [None] * len(arguments)
        wrap = getattr(import_module("lmms_eval.api.instance"), "GenerationResult", None)
        with self._bar(len(arguments)) as bar:
            for numbers in self._batches([({}, args[0]) for args in arguments]):
                prompts, continuations = [], []
                for number in numbers:
                    context, continuation, *place = arguments[number]
                    prompts.append(self._prompt(context, self._visuals(place)))
                    continuations.append(
                        continuation if isinstance(continuation, str) else self._target(continuation, place)
                    )
                for number, result in zip(numbers, losses(self._engine, prompts, continuations), strict=True):
                    results[number] = result if wrap is None else wrap(result)
                bar.update(len(numbers))
        return results

    def _visuals(self, place: Sequence[Any]) -> Any:
        """Images of a request; none where it asks for an unconditional likelihood."""
        if not place:
            return ()
        to_visual, doc_id, task, split = place
        return to_visual(self.task_dict[task][split][doc_id])

    def _target(self, to_target: Callable[[Any], str], place: Sequence[Any]) -> str:
        if not callable(to_target):
            raise ValueError(f"A task scores {to_target!r}; this model takes text. Leave the task out.")
        _, doc_id, task, split = place
        target = to_target(self.task_dict[task][split][doc_id])
        if target is None:
            raise ValueError(f"Document {doc_id} of task {task!r} has no target to be scored; leave the task out.")
        return str(target)

    def _prompt(self, context: str | Sequence[str], visuals: Any) -> Prompt:
        text: Any = context[0] if isinstance(context, list | tuple) and context else context
        images: list[Image.Image | Frames] = []
        for visual in [visuals] if isinstance(visuals, str | Image.Image) else visuals or ():
            images += self._images(visual)
        return prompt_of(text, images)

    def _images(self, visual: Any) -> list[Image.Image | Frames]:
        if isinstance(visual, Image.Image):
            return [visual]
        if isinstance(visual, str):
            inputs = self._engine.inputs
            frames = open_video(Path(visual), inputs.frame_numbers, inputs.image_opening)
            return list(frames) if inputs.counted_frames else [frames]
        raise ValueError(
            f"A task shows a {type(visual).__name__}; this model takes images and paths of videos. Leave the task out."
        )

    def _answer(self, prompts: Sequence[Prompt], settings: dict[str, Any]) -> list[str]:
        temperature, top_p = settings.get("temperature") or 0, settings.get("top_p")
        if top_p == 0 or not settings.get("do_sample", True):
            temperature = 0  # the likeliest token: a top_p of 0 leaves no other
        generation = GenerationSettings(
            temperature,
            top_p if temperature else None,
            settings.get("num_beams") or 1,
            settings.get("max_new_tokens") or DEFAULT_NEW_TOKENS,
        )
        stops = settings.get("until") or []
        stops = [stops] if isinstance(stops, str) else stops
        if not isinstance(stops, list | tuple):
            raise ValueError(f"A task's `until` is {stops!r}; it must be a text, or a list of texts.")
        return [_until(text, stops) for text in self._engine.answer(prompts, generation)]

    def _batches(self, requests: Sequence[tuple[dict[str, Any], Any]]) -> Iterable[list[int]]:
        """Numbers of requests with equal settings, long ones first, so that rows of a batch are alike."""
        keys = [
            (json.dumps(settings, sort_keys=True, default=str), -len(str(context))) for settings, context in requests
        ]
        order = sorted(range(len(keys)), key=lambda number: keys[number])
        for _, group in groupby(order, key=lambda number: keys[number][0]):
            numbers = list(group)
            yield from (numbers[at : at + self.batch_size] for at in range(0, len(numbers), self.batch_size))

    def _bar(self, total: int) -> Any:
        return tqdm(total=total, desc="Answering", disable=self._rank != 0)


def _count(name: str, value: Any) -> int:
    """A whole number of `--model_args`, which may come as text.

    Raises:
        ValueError: names it.
    """
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS and int(text) in count()):
        raise ValueError(f"{name} is {value!r}; give a whole number of 1 or more.")
    return int(text)


def _until(text: str, stops: Iterable[str]) -> str:
    for stop in stops:
        if stop and stop != _NOT_A_STOP:
            text = text.split(stop)[0]
    return text.strip()
