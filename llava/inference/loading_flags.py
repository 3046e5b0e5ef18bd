"""Command-line flags that programs share: which model, on which device, and the settings of generation."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from llava.common.image_opening import OPENINGS
from llava.common.number_flags import checked_later, count, not_negative, positive, share
from llava.common.path_flags import MODEL
from llava.compression.config import CompressionConfig
from llava.cost.scaling import add_scaling_flag
from llava.data.media_limits import MediaLimits
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.model.budget_flags import BudgetFlags


def check_device(device: str | None) -> None:
    """Say what is wrong with the device that `--device` names; None, where it is not given, is the usual one.

    Raises:
        ValueError: if torch cannot use it.
    """
    if not device:
        return
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device is {device!r}, which this torch cannot use: {reason}") from error


def add_loading_flags(parser: argparse.ArgumentParser, usual: str | None = None) -> None:
    """The flags of every program that opens a model.

    Args:
        parser: gets them.
        usual: what is opened where `--model-path` is not given, in words; None asks for it.
    """
    help_text = "checkpoint folder" if usual is None else f"checkpoint folder; by default {usual}"
    parser.add_argument("--model-path", "--model_path", type=MODEL, required=usual is None, help=help_text)
    parser.add_argument(
        "--model-base", "--model_base", type=MODEL, help="language model that a projector or LoRA folder belongs to"
    )
    parser.add_argument(
        "--image-opening",
        "--image_opening",
        choices=OPENINGS,
        help="`upright` applies a photo's rotation mark, `llava` does not; by default as the model was trained",
    )
    parser.add_argument("--device", help="cuda (also ROCm) or cpu; by default a GPU where there is one")
    parser.add_argument("--load-8bit", "--load_8bit", action="store_true", help="language model in 8 bits")
    parser.add_argument("--load-4bit", "--load_4bit", action="store_true", help="language model in 4 bits")
    for name, help_text in MEDIA_FLAGS.items():
        words = (f"--{name.replace('_', '-')}", f"--{name}")
        accepted = positive(1000) if name == "video_fps" else count()
        parser.add_argument(*words, type=accepted, help=f"Qwen's models: {help_text}; by default the processor's")
    parser.add_argument(
        "--video-flip",
        "--video_flip",
        type=share(above=True),
        help="Video-LLaVA: share of the videos that are mirrored left to right (published: 0.5; by default none)",
    )


MEDIA_FLAGS = {
    "min_pixels": "smaller images are enlarged to so many pixels",
    "max_pixels": "larger images are shrunk to so many pixels",
    "video_min_pixels": "smaller frames are enlarged to so many pixels",
    "video_max_pixels": "larger frames are shrunk to so many pixels",
    "video_min_frames": "fewest frames of a video",
    "video_max_frames": "most frames of a video",
    "video_fps": "frames taken of a second of video",
}
"""Flags of `MediaLimits` by its fields."""


def limits_of(options: argparse.Namespace) -> MediaLimits:
    """What the flags of `add_loading_flags` say about the size of images and videos; missing ones ask nothing.

    Raises:
        ValueError: if a number is out of range.
    """
    return MediaLimits(**{name: getattr(options, name, None) for name in (*MEDIA_FLAGS, "video_flip")})


def add_media_flags(parser: argparse.ArgumentParser, images: str, videos: str, image: str = "FILE_OR_URL") -> None:
    """Add `--image-file` and `--video-file`, which are empty lists where they are not given.

    Args:
        parser: parser of the program.
        images, videos: help of each flag.
        image: what names an image, for the line of usage.
    """
    for kind, metavar, text in (("image", image, images), ("video", "FILE_OR_FOLDER", videos)):
        spellings = (f"--{kind}-file", f"--{kind}_file")
        parser.add_argument(*spellings, nargs="+", action="extend", default=[], metavar=metavar, help=text)


def add_asking_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of programs that ask questions one by one: template, sampling, length of the answer."""
    parser.add_argument("--conv-mode", "--conv_mode", help="conversation template; by default that of training")
    parser.add_argument(
        "--temperature",
        type=checked_later(not_negative(1e4)),
        default=0.2,
        help="0 takes the likeliest token (default: 0.2)",
    )
    parser.add_argument(
        "--top-p",
        "--top_p",
        type=checked_later(share(above=True)),
        help="sample from the likeliest tokens of this total share",
    )
    parser.add_argument(
        "--max-new-tokens",
        "--max_new_tokens",
        type=checked_later(count()),
        default=512,
        help="longest answer (default: 512)",
    )


def asked_settings(options: argparse.Namespace) -> GenerationSettings:
    """What the flags of `add_asking_flags` say of generation.

    Raises:
        ValueError: if a number is out of range.
    """
    return GenerationSettings(options.temperature, options.top_p, max_new_tokens=options.max_new_tokens)


def add_budget_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--compression` and `--scale-to-depth`."""
    parser.add_argument("--compression", help="preset or YAML file; by default what the model was trained with")
    add_scaling_flag(parser)


def asked_budget(options: argparse.Namespace, model: Any) -> CompressionConfig | None:
    """The budget that the flags of `add_budget_flags` ask for; None for the model's own.

    Raises:
        ValueError: if there is no such budget, or it cannot be scaled to the model's depth.
    """
    if options.compression is None and not options.scale_to_depth:
        return None
    flags = BudgetFlags(compression=options.compression, scale_to_depth=options.scale_to_depth)
    return flags.over(model.compression, len(model.decoder.layers))


def open_engine(options: argparse.Namespace) -> Engine:
    """The model that the flags of `add_loading_flags` name, asked in the template of `--conv-mode`.

    Raises:
        ValueError: as `Engine.open`.
    """
    bits = bits_of(options.load_8bit, options.load_4bit)
    spec = ModelSpec(
        options.model_path,
        options.model_base,
        bits=bits,
        template=options.conv_mode,
        image_opening=options.image_opening,
        limits=limits_of(options),
    )
    return Engine.open(spec, best_device(options.device))


def bits_of(load_8bit: bool, load_4bit: bool) -> int | None:
    """The flags of quantisation as a number of bits; None where neither is set.

    Raises:
        ValueError: if both are.
    """
    if load_4bit and load_8bit:
        raise ValueError("--load-4bit and --load-8bit are both given; choose one.")
    return 4 if load_4bit else 8 if load_8bit else None


def best_device(asked: str | None) -> str:
    """The device that was asked for, else a GPU where there is one."""
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")
