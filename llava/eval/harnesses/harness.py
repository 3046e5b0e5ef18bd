"""A loaded model as adapters of other evaluation harnesses ask it: in batches, and how likely given answers are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.common.image_opening import as_rgb, opening_of
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import get_template
from llava.data.collator import SupervisedCollator
from llava.data.images import explained, within_limits
from llava.data.tokenization import EncodedText, encode_conversation, encode_prompt
from llava.inference.ending import answer_text, ending_options, needed_stop_string
from llava.inference.inputs import best_device, place_images
from llava.inference.question_text import fault_in
from llava.inference.template import choose_template
from llava.mm_utils import model_name_of, preprocess_image
from llava.model.builder import load_pretrained_model
from llava.model.columns import own_columns
from llava.model.finite import NOT_FINITE, FiniteLogits, NonFiniteLogitsError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A question to a model.

    Attributes:
        text: the question; where it holds as many `<image>` as images, they go there, else in front.
        images: in any mode, in order.
    """

    text: str
    images: tuple[Image.Image, ...] = ()


class Respondent:
    """Answers prompts in batches, and tells how likely given answers are.

    Args:
        tokenizer, model, image_processor: of `load_pretrained_model`.
        conv_mode: key of `conv_templates`.
        image_opening: `upright` or `llava`, see `llava.common.image_opening`; None for the model's.

    Raises:
        ValueError: if there is no such template or opening.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: Any,
        image_processor: Any,
        conv_mode: str,
        image_opening: str | None = None,
    ) -> None:
        get_template(conv_mode)
        self.image_opening = opening_of(model.config, image_opening)
        self.tokenizer = tokenizer
        self.model = model
        self.image_processor = image_processor
        self.conv_mode = conv_mode
        self._stop = needed_stop_string(tokenizer, conv_mode)
        filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._collate = SupervisedCollator(filler or 0)

    @classmethod
    def open(
        cls,
        model_path: str,
        model_base: str | None = None,
        conv_mode: str | None = None,
        device: str | None = None,
        image_opening: str | None = None,
        usual_conv_mode: str | None = None,
        **loading: Any,
    ) -> Respondent:
        """Load a model.

        Args:
            model_path, model_base: as in `load_pretrained_model`.
            conv_mode: key of `conv_templates`; None is that of training.
            device: by default a GPU where there is one.
            image_opening: as in the constructor.
            usual_conv_mode: where the model records no template; None goes by its name.
            loading: to `load_pretrained_model`, such as `compression`, `dtype`, `load_4bit`; None is left out.

        Raises:
            ValueError: if the model cannot be opened.
        """
        name = model_name_of(model_path)
        given = {key: value for key, value in loading.items() if value is not None}
        tokenizer, model, image_processor, _ = load_pretrained_model(
            model_path, model_base, name, device=best_device(device), **given
        )
        template = choose_template(model.config, name, conv_mode, usual_conv_mode)
        return cls(tokenizer, model, image_processor, template, image_opening)

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt], **generation: Any) -> list[str]:
        """Answers to a batch of prompts, in order.

        Args:
            prompts: at least one.
            generation: of transformers' `generate`, such as `max_new_tokens` and `do_sample`.

        Raises:
            llava.model.finite.NonFiniteLogitsError: if the model computed NaN or infinity for one of them.
        """
        encoded = [encode_prompt([self._question(prompt)], self.tokenizer, self.conv_mode) for prompt in prompts]
        inputs = self._batch(encoded, prompts)
        inputs.pop("labels")
        options = ending_options(self.model, self.tokenizer, self._stop) | generation
        watch = FiniteLogits(options.get("num_beams") or 1)
        ids = self.model.generate(**inputs, **watch.added_to(options))
        watch.require()
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [answer_text(text, self._stop) for text in texts]

    @torch.inference_mode()
    def losses(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[tuple[float, bool]]:
        """How likely an answer is to each prompt of a batch.

        Args:
            prompts: at least one.
            answers: one for each.

        Returns:
            For each the mean negative log-probability of the answer's tokens, what ends the answer among them, in nats
            (infinite where the answer was cut off for its length), and whether greedy decoding would say it.

        Raises:
            llava.model.finite.NonFiniteLogitsError: if the model computed NaN or infinity for one of them.
        """
        encoded = []
        for prompt, answer in zip(prompts, answers, strict=True):
            turns = [self._question(prompt), answer.strip()]
            encoded.append(encode_conversation(turns, self.tokenizer, self.conv_mode, bool(prompt.images)))
        inputs = self._batch(encoded, prompts)
        output = self.model(**inputs, use_cache=False, return_logits=True)
        labels = inputs["labels"].to(output.logits.device)
        if output.layouts[-1].labels is not None:  # what was cut off for its length is not there to be scored
            kept = own_columns(output.layouts[-1], labels.shape[1]).to(labels.device)
            labels = labels.masked_fill(~kept, IGNORE_INDEX)
        return [_likelihood(logits, row) for logits, row in zip(output.logits, labels, strict=True)]

    def _question(self, prompt: Prompt) -> str:
        text, count = prompt.text, len(prompt.images)
        fault = fault_in(text)
        if fault is not None:  # asked all the same, as other models are: users of a harness cannot mend its tasks
            logger.warning("A question %s. It is asked as it stands.", fault)
        marks = text.count(DEFAULT_IMAGE_TOKEN)
        if marks not in (0, count):
            logger.warning(
                "A question holds %d %s, but %d images; they go in front.", marks, DEFAULT_IMAGE_TOKEN, count
            )
            text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        return place_images(text, count, self.model.config, self.conv_mode)

    def _batch(self, encoded: Sequence[EncodedText], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Tensors on the model's device; images only where there are any."""
        aspect_ratio = getattr(self.model.config, "image_aspect_ratio", None)
        samples = []
        for number, (text, prompt) in enumerate(zip(encoded, prompts, strict=True)):
            pixels = []
            for image in prompt.images:
                with explained("An image of a question"):
                    picture = as_rgb(image, self.image_opening)
                with within_limits("An image of a question"):
                    pixels.append(preprocess_image(picture, self.image_processor, aspect_ratio))
            samples.append(text.tensors() | {"images": pixels, "sample_id": number, "truncated": False})
        collated = self._collate(samples)
        names = ("input_ids", "attention_mask", "query_mask", "labels", "images")
        return {name: collated[name].to(self.model.device) for name in names if name in collated}


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
        name: of the class.
    """
    return object if find_spec(package) is None else getattr(import_module(module), name)
