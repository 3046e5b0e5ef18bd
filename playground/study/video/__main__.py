"""Runs the study of videos: `bash scripts/quickstart.sh --video-study`, or, where an environment exists,

    python -m playground.study.video --out playground/output/video-study

The same command goes on where it was stopped: with the phase of training, and the questions, that were not finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.common.number_flags import count
from llava.common.path_flags import FOLDER_TO_WRITE
from llava.common.program import as_program
from playground.study.__main__ import in_place, make_data, of_assets
from playground.study.place import Place, StudySettings
from playground.study.video.report import write_report
from playground.study.video.summary import summarise
from playground.study.video.work import Steps, identity, train

OF_DATA = ("--seed", "1")
"""Flag of what is drawn: the study's settings were chosen on clips of seed 0."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done, then write the report; returns the exit status."""
    options = _parser().parse_args(arguments)
    return in_place(options.out, lambda: _settings(options), lambda place: _study(place, options))


def _study(place: Place, options: argparse.Namespace) -> int:
    sizes = ("--pictures", options.pictures, "--train", options.clips, "--test", options.held_out)
    make_data(place, "playground.clips", *sizes, *OF_DATA)
    steps = Steps(options.pretrain_steps, options.picture_steps, options.clip_steps, options.last_steps)
    for seed in range(options.seeds):
        train(place, seed, steps)
    print(f"Wrote {write_report(place, summarise(place))}.")
    return 0


def _settings(options: argparse.Namespace) -> StudySettings:
    sizes = f"{options.pictures} pictures, {options.clips} clips, {options.held_out} held out"
    clip_steps = f"{options.clip_steps} of clips, {options.last_steps} of clips under each compression"
    steps = f"{identity()}, {options.picture_steps} of pictures, {clip_steps}"
    of_data = f"{of_assets()}, {sizes}, seed {OF_DATA[-1]}"
    return StudySettings(options.seeds, options.pretrain_steps, options.clip_steps, data=of_data, methods=steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m playground.study.video", description="The paper's table of videos in miniature."
    )
    parser.add_argument("--out", type=FOLDER_TO_WRITE, required=True, help="folder; an unfinished study there goes on")
    parser.add_argument("--seeds", type=count(), default=1, help="models")
    parser.add_argument("--pictures", type=count(), default=5760, help="captioned and asked about, in training")
    parser.add_argument("--clips", type=count(), default=6000, help="asked about in training")
    parser.add_argument("--held-out", type=count(), default=200, help="held-out clips, two questions each")
    parser.add_argument("--pretrain-steps", type=count(), default=120, help="of the projector, 48 captions each")
    parser.add_argument("--picture-steps", type=count(), default=80, help="24 conversations about pictures each")
    parser.add_argument("--clip-steps", type=count(), default=1300, help="6 conversations about clips each")
    parser.add_argument("--last-steps", type=count(), default=400, help="the same, under each compression")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
