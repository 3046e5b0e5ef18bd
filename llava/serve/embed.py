"""Writes V2V-compressed embeddings of images, or of whole prompts, for engines that take them: vLLM and SGLang.

python -m llava.serve.embed --model-path CHECKPOINT --compression duet-v2v-64 --image-file *.jpg --output embeddings
python -m llava.serve.embed --model-path CHECKPOINT --compression duet-v2v-64 --image-file *.jpg --output prompts \\
    --form prompt_embeds --question "What is this?" --language-model language-model
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from llava.checkpoints.conversion import require_new, require_outside
from llava.checkpoints.language_model import write_language_model
from llava.checkpoints.transformers_format import type_there
from llava.common.atomic_write import whole_file, write_whole
from llava.common.json_lines import write_lines
from llava.common.number_flags import count, not_negative
from llava.common.outside_files import in_words
from llava.common.path_flags import FOLDER_TO_WRITE
from llava.common.program import as_program
from llava.common.shown import say, shown
from llava.compression.config import CompressionConfig
from llava.constants import DEFAULT_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.data.frames import Frames
from llava.inference.batches import Prompt
from llava.inference.engine import Engine
from llava.inference.loading_flags import add_loading_flags, add_media_flags, check_device, open_engine
from llava.inference.question_text import check_question
from llava.inference.typed_images import read_image
from llava.inference.typed_videos import checked_video, read_video
from llava.mm_utils import aspect_ratio_of, model_name_of
from llava.serve.embeddings import (
    FORMS,
    chat_request,
    chat_template,
    image_embeddings,
    prompt_embedding,
    prompt_request,
    require_placed_by_length,
    v2v_of,
)

IMAGE_FORM = FORMS[0]
INDEX, REQUESTS, TEMPLATE = "embeddings.jsonl", "requests.jsonl", "chat_template.jinja"
Medium = TypeVar("Medium", Image.Image, Frames)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status, 1 where some media could not be read."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check(options)
        engine = open_engine(options)
        budget = v2v_of(engine, options.compression, options.without_t2v)
        if options.form == IMAGE_FORM:
            require_placed_by_length(engine.model, type_there(engine.model.config))
        if options.language_model is not None:
            say(f"wrote {write_language_model(engine.model, engine.tokenizer, options.language_model)}")
        written, failed = _Writer(engine, budget, options).run()
    except (ValueError, OSError) as error:
        say(in_words(error), file=sys.stderr)
        return 2
    say(f"wrote {written} of {written + failed} to {options.output}")
    return 1 if failed else 0


class _Writer:
    """Embeds what the options name, and writes files, index and requests.

    Args:
        engine: the model.
        budget: result of `v2v_of`.
        options: options of the command line.
    """

    def __init__(self, engine: Engine, budget: CompressionConfig, options: argparse.Namespace) -> None:
        self.engine = engine
        self.budget = budget
        self.options = options
        self.name = options.served_name or model_name_of(options.model_path)
        self._taken: set[str] = set()
        self._failed = 0

    def run(self) -> tuple[int, int]:
        """Write everything; returns how many files were written, and how many media could not be read."""
        options, folder = self.options, self.options.output
        index: list[dict[str, Any]] = []

        def requests() -> Iterator[dict[str, Any]]:
            for place, values, visual, request in self._embedded():
                index.append({"of": place} | self._saved(place, values) | {"visual_tokens": visual})
                if request is not None:
                    yield request

        write_lines(folder / REQUESTS, requests())
        write_lines(folder / INDEX, index)
        if not options.question:
            (folder / REQUESTS).unlink()
        elif options.form == IMAGE_FORM and self.engine.inputs.template in conv_templates:
            write_whole(folder / TEMPLATE, chat_template(self.engine.inputs.template))
        return len(index), self._failed

    def _embedded(self) -> Iterator[tuple[str, torch.Tensor, int, dict[str, Any] | None]]:
        """Of each medium that can be read: place, embeddings, how many of them are visual, and request if asked for."""
        options = self.options
        if options.form == IMAGE_FORM:
            yield from self._images()
            return
        pictures = ((place, self._read(self._picture, place)) for place in options.image_file)
        films = ((place, self._read(self._video, place)) for place in options.video_file)
        for place, medium in chain(pictures, films):
            if medium is None:
                continue
            made = prompt_embedding(self.engine, Prompt(options.question, (medium,)), self.budget)
            request = prompt_request(options.form, self.name, made.values, options.max_new_tokens, options.temperature)
            yield place, made.values, made.visual, request

    def _images(self) -> Iterator[tuple[str, torch.Tensor, int, dict[str, Any] | None]]:
        question, places, size = self.options.question, self.options.image_file, self.options.batch_size
        more = {"max_tokens": self.options.max_new_tokens, "temperature": self.options.temperature}
        for start in range(0, len(places), size):
            read = [(place, self._read(self._picture, place)) for place in places[start : start + size]]
            there = [(place, picture) for place, picture in read if picture is not None]
            made = image_embeddings(self.engine, [picture for _, picture in there], self.budget) if there else []
            for (place, _), image in zip(there, made, strict=True):
                request = chat_request(self.name, question, [image], more) if question else None
                yield place, image, len(image), request

    def _read(self, read: Callable[[str], Medium], place: str) -> Medium | None:
        """An image or a video; None, after a sentence on standard error, where it cannot be read."""
        try:
            return read(place)
        except (ValueError, OSError) as error:
            say(in_words(error), file=sys.stderr)
            self._failed += 1
            return None

    def _picture(self, place: str) -> Image.Image:
        inputs = self.engine.inputs
        picture = read_image(place, inputs.image_opening, aspect_ratio=aspect_ratio_of(self.engine.model.config))
        inputs.image(picture, "The image")  # to say now what would be said of the whole batch
        return picture

    def _video(self, place: str) -> Frames:
        return read_video(place, self.engine.inputs)

    def _saved(self, place: str, values: torch.Tensor) -> dict[str, Any]:
        """Write a tensor under a name of its own; returns what the index says of it."""
        stem = Path(place).stem or "medium"
        name, number = stem, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.casefold())
        file = f"{name}.pt"
        with whole_file(self.options.output / file, "wb") as out:
            torch.save(values.contiguous(), out)
        kind = str(values.dtype).removeprefix("torch.")
        return {"file": file, "shape": list(values.shape), "dtype": kind, "compression": self.budget.to_dict()}


def _check(options: argparse.Namespace) -> None:
    """Say before the model is loaded what could only fail after it.

    Raises:
        ValueError: names the option.
    """
    check_device(options.device)
    if not options.image_file and not options.video_file:
        raise ValueError(
            "There is nothing to embed; name images (--image-file) or, for prompts, videos (--video-file)."
        )
    if options.form == IMAGE_FORM and options.video_file:
        raise ValueError(f"--video-file goes with whole prompts: --form {FORMS[1]} or {FORMS[2]}.")
    if options.form != IMAGE_FORM and not options.question:
        raise ValueError(f"--form {options.form} embeds a whole prompt; give its question (--question).")
    if options.question:
        check_question(options.question, "--question")
        marks, is_word = options.question.count(DEFAULT_IMAGE_TOKEN), WRITTEN_IMAGE_TOKEN in options.question
        if options.form == IMAGE_FORM and (marks > 1 or is_word):
            raise ValueError(
                f"--question is {shown(options.question)}; vLLM takes each {DEFAULT_IMAGE_TOKEN} for the place of an "
                "image, and a request has one: write it once, or not at all."
            )
    if options.compression is not None:
        CompressionConfig.resolve(options.compression)
    for place in options.video_file:
        checked_video(place)
    folders = [folder for folder in (options.output, options.language_model) if folder is not None]
    for folder in folders:
        require_new(folder)
        require_outside(folder, options.model_path, options.model_base, *options.video_file)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("--output and --language-model name the same folder; give each its own.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_loading_flags(parser)
    parser.add_argument("--conv-mode", "--conv_mode", help="conversation template; by default that of training")
    add_media_flags(parser, images="images", videos="videos, for whole prompts", image="FILE")
    parser.add_argument("--question", default="", help="question about each; without one no requests are written")
    parser.add_argument(
        "--form",
        choices=FORMS,
        default=IMAGE_FORM,
        help="image_embeds: an image, for vLLM; prompt_embeds: a whole prompt, for vLLM; input_embeds: for SGLang "
        "(default: image_embeds)",
    )
    parser.add_argument("--compression", help="preset or YAML file; by default what the model was trained with")
    parser.add_argument(
        "--without-t2v", "--without_t2v", action="store_true", help="take only V2V of a budget that has T2V, too"
    )
    parser.add_argument(
        "--language-model",
        "--language_model",
        type=FOLDER_TO_WRITE,
        metavar="FOLDER",
        help="also write the language model alone there, for engines that get whole prompts",
    )
    parser.add_argument("--output", type=FOLDER_TO_WRITE, required=True, metavar="FOLDER", help="new folder")
    parser.add_argument("--served-name", "--served_name", help="the model's name in requests (default: the folder's)")
    parser.add_argument(
        "--batch-size", "--batch_size", type=count(), default=8, help="images encoded together (default: 8)"
    )
    parser.add_argument(
        "--max-new-tokens", "--max_new_tokens", type=count(), default=512, help="longest answer (default: 512)"
    )
    parser.add_argument("--temperature", type=not_negative(1e4), default=0.0, help="in requests (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
