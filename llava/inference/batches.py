"""Makes batches of tensors from prompts, in worker processes, while the model answers earlier batches."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from llava.common.child_processes import end_with_parent
from llava.common.outside_files import why_unreadable
from llava.data.families.base import ModelInputs, Sample
from llava.data.frames import Frames
from llava.data.images import Picture, name_of, open_picture
from llava.data.video import open_video
from llava.model.splice import PlanSettings

_WINDOW = 32
"""Number of batches whose prompts are sorted by length together before they are split into batches."""


class PromptLike(Protocol):
    """What a model can be asked: `Prompt`, a benchmark's question."""

    @property
    def text(self) -> str:
        """The question, without conversation template; it may say where its images go."""

    @property
    def images(self) -> Sequence[Picture | Frames]:
        """Images, and decoded videos, that are shown with it, in the order of their marks."""

    @property
    def video(self) -> Path | None:
        """A file, or a folder of frames, for a question about a video; there are no images then."""


@dataclass(frozen=True)
class Prompt:
    """A question to a model; attributes as in `PromptLike`."""

    text: str
    images: tuple[Picture | Frames, ...] = ()
    video: Path | None = None


@dataclass(frozen=True)
class Task:
    """Prompts that are answered together.

    Attributes:
        numbers: numbers of the prompts among all.
        prompts: the same, whole.
    """

    numbers: tuple[int, ...]
    prompts: tuple[PromptLike, ...]


def batches(prompts: Sequence[PromptLike], numbers: Sequence[int], batch_size: int) -> Iterator[Task]:
    """Deal prompts out. Those of one batch are of similar length, so that little is padded.

    Args:
        prompts: all of them.
        numbers: numbers of those to answer.
        batch_size: prompts of one batch; the last may have fewer.
    """
    window = _WINDOW * batch_size
    for start in range(0, len(numbers), window):
        near = sorted(numbers[start : start + window], key=lambda number: _length(prompts[number]))
        for first in range(0, len(near), batch_size):
            chosen = tuple(near[first : first + batch_size])
            yield Task(chosen, tuple(prompts[number] for number in chosen))


def _length(prompt: PromptLike) -> tuple[bool, int, int]:
    return prompt.video is not None, len(prompt.images), len(prompt.text)


def media_of(prompt: PromptLike, inputs: ModelInputs) -> list[Any]:
    """What a prompt shows, read and prepared.

    Args:
        prompt: names its media.
        inputs: the `ModelInputs` of the model that is asked.

    Raises:
        ValueError: if an image or video cannot be read or shown.
    """
    if prompt.video is not None:
        frames = open_video(prompt.video, inputs.frame_numbers, inputs.image_opening)
        return inputs.video(frames, name_of(prompt.video))
    media: list[Any] = []
    for one in prompt.images:
        if isinstance(one, Frames):
            media += inputs.video(one, "The video")
        else:
            media.append(inputs.image(open_picture(one, inputs.image_opening), name_of(one)))
    return media


@dataclass(frozen=True)
class PreparedBatch:
    """A task as tensors, and the prompts of it that cannot be answered.

    Attributes:
        task: task as it was dealt out.
        rows: the prompts (by place in the task) that can be answered.
        inputs: arguments of the model's `generate`, a row for each of them, with arrays in place of tensors.
        shows: whether each of them shows the model anything.
        problems: why others cannot be answered, by place in the task.
    """

    task: Task
    rows: tuple[int, ...]
    inputs: dict[str, Any]
    shows: tuple[bool, ...]
    problems: dict[int, str]


@dataclass(frozen=True)
class Preparer:
    """Makes batches of tasks. As a data set it can be used by processes that read ahead.

    Attributes:
        inputs: the `ModelInputs` of the model.
        settings: `plan_settings` of the model.
    """

    inputs: ModelInputs
    settings: PlanSettings | None

    def __getitem__(self, task: Task) -> PreparedBatch:
        samples, shows, problems = {}, {}, {}
        for row, prompt in enumerate(task.prompts):
            try:
                samples[row], shows[row] = self.sample(prompt)
            except ValueError as error:
                problems[row] = str(error)
            except OSError as error:  # of a file system, such as a name that is too long or a disk that fails
                problems[row] = f"Its image or video cannot be read: {why_unreadable(error)}."
            except MemoryError:
                problems[row] = "The question and its images take more memory than there is."
        batch = self.inputs.batch(list(samples.values())) if samples else {}
        arrays = {name: _as_arrays(value) for name, value in batch.items() if name != "labels"}
        return PreparedBatch(task, tuple(samples), arrays, tuple(shows.values()), problems)

    def sample(self, prompt: PromptLike) -> tuple[Sample, bool]:
        """One prompt as the family encodes it, and whether it shows anything.

        Raises:
            ValueError: if an image or video cannot be read, or the question does not fit the model.
        """
        media = media_of(prompt, self.inputs)
        sample = self.inputs.prompt([self.inputs.question(prompt.text, media)], media)
        length, limit = self.inputs.length(sample, self.settings), self.inputs.limit
        if length >= limit:
            raise ValueError(f"The question takes {length} tokens, but the model can number {limit}.")
        return sample, bool(media)


def read_ahead(preparer: Preparer, tasks: Iterable[Task], workers: int) -> Iterable[PreparedBatch]:
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
        dataset, sampler=sampler, batch_size=None, num_workers=workers, collate_fn=leave_alone, worker_init_fn=_start
    )


def _start(worker: int) -> None:
    """Ignore Ctrl-C, which a terminal sends to every process, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _as_it_is(batch: PreparedBatch) -> PreparedBatch:
    """Leaves arrays alone: as tensors they would pass through shared memory, of which containers often have little."""
    return batch


def _as_arrays(value: Any) -> Any:
    """Tensors, and lists of them, as arrays; bfloat16, which numpy lacks, stays."""
    if isinstance(value, torch.Tensor):
        return value if value.dtype is torch.bfloat16 else value.numpy()
    return [_as_arrays(one) for one in value] if isinstance(value, list | tuple) else value


def to_device(inputs: Any, device: torch.device) -> Any:
    """Arrays and tensors, in dicts and lists too, as tensors on a device; anything else as it is."""
    match inputs:
        case np.ndarray():
            return torch.from_numpy(inputs).to(device)
        case torch.Tensor():
            return inputs.to(device)
        case dict():
            return {name: to_device(value, device) for name, value in inputs.items()}
        case list() | tuple():
            return [to_device(value, device) for value in inputs]
        case other:
            return other
