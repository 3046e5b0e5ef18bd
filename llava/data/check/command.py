"""The command line of the check."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.common.anyres import is_anyres
from llava.common.atomic_write import write_whole
from llava.common.image_opening import DEFAULT_OPENING, OPENINGS, check_opening
from llava.common.json_files import read_object, write_json
from llava.common.number_flags import MOST_PROCESSES, checked_later, count, positive, share
from llava.common.outputs import require_apart, require_folder
from llava.common.outside_files import in_words
from llava.common.path_flags import FILE_TO_WRITE, FOLDER_TO_READ, MODEL, TO_READ, as_text
from llava.common.shown import say
from llava.conversation import get_template, recorded_template
from llava.cost.overview import fitting
from llava.data.check.budgets import CostAssumptions, default_passes, figures, visual_tokens_of
from llava.data.check.check_report import Report, write_all
from llava.data.check.check_settings import IMAGE_MODES, CheckSettings
from llava.data.check.checking import CheckResult, check
from llava.data.check.conversations import load_inputs, load_tokenizer
from llava.data.check.model_media import KNOWN, ModelMedia
from llava.data.check.sources import DataFile, SourceError, read_sources, write_clean
from llava.data.end_marks import end_mark_warning
from llava.data.families.processor import OWN_TEMPLATE
from llava.data.mixture_files import is_mixture
from llava.mm_utils import ASPECT_RATIOS

USUAL_BUDGETS = {
    "llava-1.5": ("none", "duet-192", "duet-128", "duet-64"),
    "llava-next": ("none", "next-640", "next-320", "next-160"),
    "video-llava": ("none", "video-960", "video-136"),
    "qwen2.5-vl": ("none", "qwen-share-70"),
    "qwen3-vl": ("none", "qwen3-share-70"),
    "llava-onevision": ("none", "onevision-share-70"),
}
"""What a data set is checked for where no budget is named, as far as they fit the model."""

USUAL_LENGTHS = {
    "llava-1.5": 2048,
    "llava-next": 4096,
    "video-llava": 3072,
    "qwen2.5-vl": 8192,
    "qwen3-vl": 8192,
    "llava-onevision": 32768,
}
"""`--model_max_length` of the families' recipes; Video-LLaVA's after the expansion of its videos."""

_OUTPUTS = ("report", "text", "write_clean", "list_all")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    options = _parser().parse_args(_with_hyphens(sys.argv[1:] if arguments is None else arguments))
    try:
        _check_options(options)
        media = ModelMedia.of(options.model, options.image_aspect_ratio)
        settings = _settings(options, media)
        if media.by_processor and settings.tokenizer is not None:
            load_inputs(settings.tokenizer)
        elif settings.tokenizer is not None and (
            warning := end_mark_warning(settings.template, load_tokenizer(settings.tokenizer))
        ):
            logging.getLogger(__name__).warning("%s", warning)
        sources = read_sources(options.data_path, options.image_folder, options.limit, options.video_folder)
        _check_outputs(options, sources)
        result = check(sources, settings, options.workers)
    except (ValueError, RuntimeError) as error:
        say(f"check: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        say(f"check: {in_words(error)}", file=sys.stderr)
        return 2
    _write(result, options, media)
    share = len(result.faulty) / len(result)
    return int(share > options.max_bad_share)


def _write(result: CheckResult, options: argparse.Namespace, media: ModelMedia) -> None:
    passes = options.passes or default_passes(options.version)
    assumed = CostAssumptions(
        options.model, options.batch_size, options.devices, options.peak_tflops, options.mfu, passes
    )
    report = Report(result, figures(result, assumed, media.decoder, media.image, media.video), assumed)
    text = report.to_text()
    say(text)
    if options.text:
        write_whole(options.text, text + "\n")
    if options.report:
        write_json(options.report, report.to_json(), indent=1)
    if options.list_all:
        write_all(result, options.list_all)
    if options.write_clean and len(result.good):
        count = write_clean(options.write_clean, result.good_objects())
        say(f"\nWrote the {count:,} good records to {options.write_clean}.")
    elif options.write_clean:
        say(f"\nNo record is good; {options.write_clean} was not written.", file=sys.stderr)


def _settings(options: argparse.Namespace, media: ModelMedia) -> CheckSettings:
    if media.by_processor:
        if options.version is not None:
            raise ValueError(
                f"--version is a template of LLaVA's own models; a {media.family} has its own: leave it out."
            )
        options.version, options.tokenizer = OWN_TEMPLATE, options.tokenizer or options.model
    recorded = _recorded(options.tokenizer)
    options.version = options.version or recorded_template(recorded) or "v1"
    if not media.by_processor:
        get_template(options.version)
    usual = USUAL_BUDGETS[media.family]
    options.compression = options.compression or fitting(media.family, media.decoder, media.image, usual)
    of_images, of_videos = (
        () if medium is None else visual_tokens_of(options.compression, media.decoder, medium, media.family)
        for medium in (media.image, media.video)
    )
    return CheckSettings(
        template=options.version,
        tokenizer=options.tokenizer,
        max_length=options.model_max_length or USUAL_LENGTHS[media.family],
        budgets=tuple(options.compression),
        visual_tokens=of_images,
        images=options.images,
        aspect_ratio=None if media.by_processor else options.image_aspect_ratio,
        image_opening=check_opening(options.image_opening or recorded.get("image_opening") or DEFAULT_OPENING),
        family=media.family,
        frames=media.frames,
        frame_tokens=tuple(tokens // media.frames for tokens in of_videos),
        counted_frames=not media.by_processor,
        uncut=() if media.video is None or not media.by_processor else (media.image.plain, media.video.plain),
    )


def _recorded(tokenizer: str | None) -> dict[str, Any]:
    """What the `config.json` beside the tokenizer says; empty where there is none."""
    path = Path(tokenizer or "", "config.json")
    if tokenizer is None or not path.is_file():
        return {}
    return read_object(path, "give another --tokenizer")


def _with_hyphens(arguments: Sequence[str]) -> list[str]:
    """Flags may be written with underscores, as in the rest of LLaVA."""
    return [re.sub(r"^--[^=]*", lambda flag: flag[0].replace("_", "-"), word) for word in arguments]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.data.check",
        description="Check a whole training data set: format, images, lengths, labels; what an epoch costs.",
        epilog="Exit status: 0 if no record has an error, 1 if more than --max-bad-share have one, 2 if the check "
        "cannot be made. Warnings do not count. Flags may be written with - or _.",
    )
    _add_data(parser)
    _add_form(parser)
    _add_cost(parser)
    _add_outputs(parser)
    return parser


def _add_form(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("how the data is read")
    data.add_argument(
        "--version", help="template, `plain` for pre-training; default: that of the checkpoint --tokenizer, or v1"
    )
    data.add_argument("--tokenizer", type=MODEL, help="folder or hub name; without it, token counts are estimates")
    data.add_argument(
        "--model-max-length",
        type=count(),
        help="tokens, expanded images included; default: that of the family's recipe, "
        + ", ".join(f"{length} ({family})" for family, length in USUAL_LENGTHS.items()),
    )
    data.add_argument(
        "--image-aspect-ratio",
        type=_aspect_ratio,
        default="pad",
        help=f"as in training: {', '.join(ASPECT_RATIOS)}, anyres or anyres_max_N; default: %(default)s",
    )
    data.add_argument(
        "--image-opening", choices=OPENINGS, help=f"default: that of the checkpoint --tokenizer, or {DEFAULT_OPENING}"
    )
    data.add_argument(
        "--images",
        choices=IMAGE_MODES,
        default="full",
        help="decode every image and the frames of videos that are shown (the default), read only headers (misses "
        "files that are cut off), or open none",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    formats = "JSON, JSON lines, Parquet or YAML mixtures"
    data.add_argument("--data-path", nargs="+", type=TO_READ, required=True, help=formats)
    data.add_argument(
        "--image-folder",
        type=as_text(FOLDER_TO_READ),
        default=".",
        help="where image names start; default: %(default)s",
    )
    data.add_argument(
        "--video-folder", type=as_text(FOLDER_TO_READ), help="where names of videos start; default: the image folder"
    )
    data.add_argument("--limit", type=count(), help="look only at so many records, from the front")
    data.add_argument(
        "--workers",
        type=count(0, MOST_PROCESSES),
        default=os.cpu_count() or 1,
        help="processes; default: one for each processor; 0 works in this one",
    )
    data.add_argument(
        "--max-bad-share",
        type=checked_later(share()),
        default=0.0,
        help="share of records that may have errors; default: %(default)g",
    )


def _aspect_ratio(text: str) -> str:
    """One of LLaVA's and LLaVA-NeXT's `image_aspect_ratio`s."""
    if text not in ASPECT_RATIOS and not is_anyres(text):
        accepted = ", ".join(ASPECT_RATIOS)
        raise argparse.ArgumentTypeError(f"{text!r} is none; accepted are {accepted}, anyres and anyres_max_N")
    return text


def _add_cost(parser: argparse.ArgumentParser) -> None:
    cost = parser.add_argument_group("cost estimates")
    cost.add_argument(
        "--compression",
        nargs="+",
        help="presets or YAML files (default: `none` and the family's DUET presets that fit the model); a record must "
        "keep a label under each of them, so name only those you will use",
    )
    cost.add_argument(
        "--model",
        type=MODEL,
        default="llava-1.5-7b",
        help=f"{', '.join(KNOWN)} or a checkpoint folder; default: %(default)s",
    )
    cost.add_argument(
        "--batch-size", type=count(), default=16, help="samples of a device in a forward pass; default: %(default)s"
    )
    cost.add_argument("--devices", type=count(), default=8, help="default: %(default)s")
    cost.add_argument(
        "--peak-tflops",
        type=positive(1e9),
        default=312.0,
        help="of a device; default: %(default)g, an A100 in bfloat16",
    )
    cost.add_argument(
        "--mfu",
        type=checked_later(share(above=True)),
        default=0.3,
        help="share of the peak that is reached; default: %(default)g",
    )
    cost.add_argument(
        "--passes", type=int, choices=(2, 3, 4), help="forward-sized passes a step; default: 3 for `plain`, else 4"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument(
        "--report", metavar="OUT.json", type=FILE_TO_WRITE, help="counts, 20 examples each, statistics"
    )
    outputs.add_argument("--text", metavar="OUT.txt", type=FILE_TO_WRITE, help="what is printed")
    outputs.add_argument("--list-all", metavar="OUT.jsonl", type=FILE_TO_WRITE, help="every finding, one a line")
    outputs.add_argument(
        "--write-clean",
        metavar="OUT.json",
        type=FILE_TO_WRITE,
        help="the records without errors, unchanged and in order; JSON lines if it ends in .jsonl",
    )


def _check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for values that do not go together, before anything is read."""
    if not 0 < options.mfu <= 1:
        raise ValueError(f"--mfu is {options.mfu:g}; it is a share, above 0 and at most 1.")
    if not 0 <= options.max_bad_share <= 1:
        raise ValueError(f"--max-bad-share is {options.max_bad_share:g}; it is a share, from 0 to 1.")
    if options.write_clean and options.limit:
        raise ValueError("--write-clean would lose the records beyond --limit; leave one of them out.")
    if options.write_clean and any(is_mixture(path) for path in options.data_path):
        raise ValueError("--write-clean cannot keep a mixture's weights and image folders; clean its files one by one.")
    for flag, folder in (("--image-folder", options.image_folder), ("--video-folder", options.video_folder)):
        if options.images != "skip" and folder is not None and not Path(folder).is_dir():
            raise ValueError(f"There is no folder {folder!r}; check {flag}, or give --images skip.")
    chosen: dict[str, Path] = {}
    for name in _OUTPUTS:
        path = getattr(options, name)
        if path is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        require_folder(flag, path)
        chosen[flag] = path
    require_apart(chosen, [options.tokenizer])


def _check_outputs(options: argparse.Namespace, sources: Sequence[DataFile]) -> None:
    """Raise SourceError if an output would replace the data."""
    named = [path for path in options.data_path if path.exists()]  # `a.json%50` is no file's name
    inputs = [*named, *(source.path for source in sources)]
    for name in _OUTPUTS:
        path = getattr(options, name)
        if path is not None and path.exists() and any(path.samefile(data) for data in inputs):
            raise SourceError(f"--{name.replace('_', '-')} is {str(path)!r}, which is the data itself; name another.")
