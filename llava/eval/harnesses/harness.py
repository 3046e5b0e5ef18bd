"""The model as evaluation harnesses use it: answers to their questions, and likelihoods of given answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.common.shown import shown
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.data.frames import Frames
from llava.inference.batches import Prompt
from llava.inference.engine import Engine, ModelSpec
from llava.inference.loading_flags import best_device, check_device
from llava.inference.question_text import fault_in
from llava.model.columns import own_columns
from llava.model.finite import NOT_FINITE, NonFiniteLogitsError

logger = logging.getLogger(__name__)

_HALVES = re.compile("[\ud800-\udfff]")


def open_engine(spec: ModelSpec, device: str | None) -> Engine:
    """Load a model to answer a harness's questions.

    Args:
        spec: which.
        device: device of the model; by default a GPU where there is one.

    Raises:
        ValueError: if it cannot be opened, nobody can be asked in the template, or torch cannot use the device.
    """
    if device is not None:
        check_device(device)
    engine = Engine.open(spec, best_device(device))
    engine.inputs.with_roles(engine.inputs.template)
    return engine


def prompt_of(text: str, images: Sequence[Image.Image | Frames] = ()) -> Prompt:
    """A question of a harness.

    Args:
        text: where it holds as many `<image>` as images, they go there, else in front. Halves of surrogate pairs,
            which no tokenizer reads, become U+FFFD.
        images: images in any mode, and decoded videos, in order.

    Raises:
        ValueError: if it is no text.
    """
    if not isinstance(text, str):
        raise ValueError(f"A question is {shown(text, 60)}; it must be text.")
    fault = fault_in(text)
    if fault is not None:  # asked all the same, as other models are: users of a harness cannot mend its tasks
        logger.warning("A question %s. It is asked all the same.", fault)
        text = _HALVES.sub("\ufffd", text)
    marks = text.count(DEFAULT_IMAGE_TOKEN)
    if marks not in (0, len(images)):
        logger.warning(
            "A question holds %d %s, but %d images; they go in front.", marks, DEFAULT_IMAGE_TOKEN, len(images)
        )
        text = without_marks(text).strip()
    return Prompt(text, tuple(images))


def without_marks(text: str) -> str:
    """A text without `<image>`, also where taking one out puts together another."""
    while DEFAULT_IMAGE_TOKEN in text:
        text = text.replace(DEFAULT_IMAGE_TOKEN, "")
    return text


@torch.inference_mode()
def losses(engine: Engine, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[tuple[float, bool]]:
    """Mean loss of a given answer behind each prompt of a batch, and whether greedy decoding gives it.

    Args:
        engine: the model.
        prompts: prompts; at least one.
        answers: one for each.

    Returns:
        For each the mean negative log-probability of the answer's tokens, what ends the answer among them, in nats
        (infinite where the answer was cut off for its length), and whether greedy decoding would say it.

    Raises:
        llava.model.finite.NonFiniteLogitsError: if the model computed NaN or infinity for one of them.
    """
    samples = []
    for prompt, answer in zip(prompts, answers, strict=True):
        media = engine.media(prompt)
        question = engine.inputs.question(prompt.text, media)
        samples.append(engine.inputs.conversation([question, _HALVES.sub("\ufffd", answer.strip())], media))
    inputs = engine.batch(samples)
    output = engine.model(**inputs, use_cache=False, return_logits=True, output_layouts=True)
    labels = inputs["labels"].to(output.logits.device)
    kept = own_columns(output.layouts[-1], labels.shape[1]).to(labels.device)
    labels = labels.masked_fill(~kept, IGNORE_INDEX)  # what was cut off for its length is not there to be scored
    return [_likelihood(logits, row) for logits, row in zip(output.logits, labels, strict=True)]


def _likelihood(logits: Tensor, labels: Tensor) -> tuple[float, bool]:
    """Mean loss of one row's labels [T] under its logits [T, V], and whether each is the likeliest token."""
    targets = labels[1:]
    chosen = targets != IGNORE_INDEX
    if not bool(chosen.any()):
        return float("inf"), False
    predicted, targets = logits[:-1][chosen].float(), targets[chosen]
    if not bool(torch.isfinite(predicted.amax(dim=-1)).all()):
        raise NonFiniteLogitsError(NOT_FINITE)
    loss = torch.nn.functional.cross_entropy(predicted, targets)
    return loss.item(), bool((predicted.argmax(dim=-1) == targets).all())


def class_or_object(package: str, module: str, name: str) -> Any:
    """A class of an optional package to derive from; `object` where the package is not installed.

    Args:
        package: whose presence decides.
        module: that holds the class.
        name: name of the class.
    """
    return object if find_spec(package) is None else getattr(import_module(module), name)
