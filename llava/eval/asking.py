"""From questions to the tensors that a model answers, in the background while it answers others."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llava.common.child_processes import end_with_parent
from llava.common.image_opening import DEFAULT_OPENING, opening_of
from llava.data.collator import SupervisedCollator
from llava.data.images import open_rgb, within_limits
from llava.data.tokenization import encode_prompt
from llava.eval.benchmarks.questions import Picture, Question
from llava.inference.inputs import place_images
from llava.mm_utils import preprocess_image

_WINDOW = 32
"""Batches whose questions are put in order of length before they are dealt out."""


@dataclass(frozen=True)
class Task:
    """Questions that are answered together.

    Attributes:
        numbers: of the questions in their file.
        questions: the same, whole.
    """

    numbers: tuple[int, ...]
    questions: tuple[Question, ...]


def batches(questions: Sequence[Question], numbers: Sequence[int], batch_size: int) -> Iterator[Task]:
    """Deal questions out. Those of one batch are of similar length, so that little is padded.

    Args:
        questions: of a benchmark.
        numbers: of those to answer.
        batch_size: questions of one batch; the last may have fewer.
    """
    window = _WINDOW * batch_size
    for start in range(0, len(numbers), window):
        near = sorted(numbers[start : start + window], key=lambda number: _length(questions[number]))
        for first in range(0, len(near), batch_size):
            chosen = tuple(near[first : first + batch_size])
            yield Task(chosen, tuple(questions[number] for number in chosen))


def _length(question: Question) -> tuple[bool, int, int]:
    return question.video is not None, len(question.images), len(question.text)


@dataclass(frozen=True)
class Batch:
    """What became of a task.

    Attributes:
        task: as it was dealt out.
        rows: the questions (by place in the task) that can be answered.
        inputs: arrays for the model's `generate`, a row for each of them.
        problems: why others cannot be answered, by place in the task.
    """

    task: Task
    rows: tuple[int, ...]
    inputs: dict[str, np.ndarray]
    problems: dict[int, str]


@dataclass(frozen=True)
class Preparer:
    """Makes batches of tasks. As a data set it can be used by processes that read ahead.

    Attributes:
        tokenizer, image_processor: of the model; without a tower there is no image processor.
        config: of the model.
        conv_mode: key of `conv_templates`.
        visual_tokens: that one image brings into the model.
        num_frames: of a video that are shown.
        image_opening: `upright` or `llava`; None for the model's.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    config: Any
    conv_mode: str
    visual_tokens: int
    num_frames: int
    image_opening: str | None = None

    def __getitem__(self, task: Task) -> Batch:
        samples, problems = {}, {}
        for row, question in enumerate(task.questions):
            try:
                samples[row] = self.sample(question)
            except ValueError as error:
                problems[row] = str(error)
            except OSError as error:  # of a file system, such as a name that is too long or a disk that fails
                problems[row] = f"Its image or video cannot be read: {error}"
            except MemoryError:
                problems[row] = "The question and its images take more memory than there is."
        if not samples:
            return Batch(task, (), {}, problems)
        pad = self.tokenizer.pad_token_id or 0
        collated = SupervisedCollator(pad)(list(samples.values()))
        names = ("input_ids", "attention_mask", "query_mask", "images")
        inputs = {name: collated[name].numpy() for name in names if name in collated}
        return Batch(task, tuple(samples), inputs, problems)

    def sample(self, question: Question) -> dict[str, Any]:
        """One question as the collator takes it.

        Raises:
            ValueError: if an image or video cannot be read, or the question does not fit the model.
        """
        images = self._images(question)
        if images and self.image_processor is None:
            raise ValueError("The model has no vision tower; give a LLaVA.")
        text = place_images(question.text, len(images), self.config, self.conv_mode)
        encoded = encode_prompt([text], self.tokenizer, self.conv_mode)
        length, limit = encoded.expanded_length(self.visual_tokens), self.config.max_position_embeddings
        if length >= limit:
            raise ValueError(f"The question takes {length} tokens, but the model can number {limit}.")
        aspect_ratio = getattr(self.config, "image_aspect_ratio", None)
        shown = [question.video] * len(images) if question.video else question.images
        pixels = []
        for picture, image in zip(shown, images, strict=True):
            with within_limits("The image" if isinstance(picture, bytes) else f"Image {str(picture)!r}"):
                pixels.append(preprocess_image(image, self.image_processor, aspect_ratio))
        return encoded.tensors() | {"images": pixels, "sample_id": question.question_id, "truncated": False}

    def _images(self, question: Question) -> list[Image.Image]:
        opening = opening_of(self.config, self.image_opening)
        if question.video is None:
            return [open_picture(picture, opening) for picture in question.images]
        from llava.data.video import read_frames

        return read_frames(question.video, self.num_frames, opening)


def open_picture(picture: Picture, opening: str = DEFAULT_OPENING) -> Image.Image:
    """An image as RGB, from a file or from the content of one.

    Args:
        picture: the file or the content.
        opening: `upright` or `llava`, see `llava.common.image_opening`.

    Raises:
        ValueError: if it cannot be read.
    """
    if isinstance(picture, bytes):
        return open_rgb(io.BytesIO(picture), opening)
    if not picture.exists():
        raise ValueError(f"There is no image file {str(picture)!r}.")
    return open_rgb(picture, opening)


def read_ahead(preparer: Preparer, tasks: Iterable[Task], workers: int) -> Iterable[Batch]:
    """The batches of tasks, in order.

    Args:
        preparer: makes them.
        tasks: may come from elsewhere, one by one; two for each worker are asked for ahead.
        workers: processes; 0 makes each batch when it is asked for.
    """
    dataset: Any = preparer
    sampler: Any = tasks
    leave_alone: Any = _as_it_is
    return DataLoader(
        dataset, sampler=sampler, batch_size=None, num_workers=workers, collate_fn=leave_alone,
        worker_init_fn=_start,
    )  # fmt: skip


def _start(worker: int) -> None:
    """Ctrl-C, of which the terminal tells every process, is left to the run, and so is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _as_it_is(batch: Batch) -> Batch:
    """Leaves arrays alone: as tensors they would pass through shared memory, of which containers often have little."""
    return batch


def to_device(inputs: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays of a batch as tensors."""
    return {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
