"""One question about one or several images.

    python -m llava.eval.run_llava --model-path CHECKPOINT --image-file a.png,b.png --query "What differs?"

From Python, with the same names: `eval_model(SimpleNamespace(model_path=..., image_file=..., query=..., ...))`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from llava.common.number_flags import checked_later, count
from llava.common.program import as_program
from llava.common.shown import say, shown
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.conversation import get_template, recorded_template
from llava.eval.runner.exit_status import exit_status
from llava.eval.runner.flags import COMPRESSION_DEFAULTS, add_compression_flags, budget
from llava.inference.chat import Chat
from llava.inference.engine import Engine
from llava.inference.generation import GenerationSettings
from llava.inference.loading_flags import (
    add_asking_flags,
    add_loading_flags,
    add_media_flags,
    check_device,
    open_engine,
)
from llava.inference.places import image_files
from llava.inference.question_text import check_question
from llava.inference.typed_images import ANY_ADDRESSES, as_seen, open_image
from llava.inference.typed_videos import checked_video, read_video
from llava.mm_utils import aspect_ratio_of, model_name_of

DEFAULTS: dict[str, Any] = {
    "model_base": None,
    "device": None,
    "image_opening": None,
    "load_8bit": False,
    "load_4bit": False,
    "conv_mode": None,
    "sep": ",",
    "temperature": 0.2,
    "top_p": None,
    "num_beams": 1,
    "max_new_tokens": 512,
    "addresses": ANY_ADDRESSES,
    "video_file": None,
    **COMPRESSION_DEFAULTS,
}
"""What attributes that `args` of `eval_model` lacks stand for."""


def eval_model(args: Any) -> str:
    """Load a model, answer one question, print the answer and return it.

    Args:
        args: anything with the attributes `model_path`, `image_file` (names joined by `sep`, or a list; empty for a
            question about text) and `query`, and, where they should differ from `DEFAULTS`, those named there;
            `video_file` is a list of paths of videos, shown behind the images. In the query `<image-placeholder>` (or
            `<image>`) says where an image goes; without it images come first.

    Raises:
        ValueError: if a value does not fit, an image cannot be read, or the folder holds no model.
    """
    given = {name: getattr(args, name, value) for name, value in DEFAULTS.items()}
    options = argparse.Namespace(model_path=args.model_path, **given)
    check_device(options.device)
    if options.conv_mode:
        get_template(options.conv_mode)
    if not isinstance(args.query, str):
        raise ValueError(f"query is {args.query!r}; it must be text.")
    query = args.query.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN)
    check_question(query, f"--query {shown(args.query, 60)}")
    places = image_files(args.image_file, options.sep)
    pictures = [open_image(place, options.addresses) for place in places]
    films = [options.video_file] if isinstance(options.video_file, str) else list(options.video_file or ())
    for film in films:
        checked_video(film)
    settings = GenerationSettings(options.temperature, options.top_p, options.num_beams, options.max_new_tokens)
    engine = open_engine(options)
    config, opening = engine.model.config, engine.inputs.image_opening
    _warn_of_name(engine, model_name_of(args.model_path), options.conv_mode)
    chat = Chat.over(engine, settings, budget(options, engine.model.compression, len(engine.model.decoder.layers)))
    ratio = aspect_ratio_of(config)
    seen: list[Any] = [as_seen(one, place, opening, ratio) for one, place in zip(pictures, places, strict=True)]
    answer = chat.answer(query, seen + [read_video(film, engine.inputs) for film in films])
    say(answer)
    return answer


def _warn_of_name(engine: Engine, name: str, asked: str | None) -> None:
    """Say, as LLaVA does, where the name of a model that records no template asks for another."""
    by_name = engine.inputs.template_by_name(name)
    if None not in (asked, by_name) and asked != by_name and recorded_template(engine.model.config) is None:
        logging.getLogger(__name__).warning(
            "The model's name suggests conv_mode %s, but %s was asked for and is used.", by_name, asked
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.image_file and not options.video_file:
        parser.error("the following arguments are required: --image-file/--image_file, or --video-file")

    def program() -> int:
        eval_model(options)
        return 0

    return exit_status(program, kept="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.run_llava", description="Ask a model one question about images."
    )
    add_loading_flags(parser)
    add_media_flags(
        parser,
        images="paths or addresses, joined by --sep, or one after the other; may be given several times",
        videos="videos, behind the images: files, animations or folders of frames",
    )
    parser.add_argument("--query", required=True, help=f"the question; {IMAGE_PLACEHOLDER} says where an image goes")
    parser.add_argument("--sep", help="between image files (default: a comma)")
    add_asking_flags(parser)
    parser.add_argument(
        "--num_beams", "--num-beams", type=checked_later(count()), help="beams of a beam search (default: 1)"
    )
    add_compression_flags(parser)
    parser.set_defaults(**DEFAULTS)
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
