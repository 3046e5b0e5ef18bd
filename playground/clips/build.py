"""Writes pictures and clips: PNG files, folders of PNG frames, and JSON in Video-LLaVA's formats.

OUT/images/train/000000.png
OUT/pretrain.json                           picture -> caption, for training the projector
OUT/pictures.json                           picture -> conversation, for instruction tuning
OUT/videos/train/000000/{0,1,2}.png
OUT/clips.json                              clip -> conversation, for instruction tuning
OUT/eval/clips_Zero_Shot_QA/                held-out questions as Video-LLaVA's evaluation has them: test_q.json,
                                            test_a.json and videos/000000/{0,1,2}.png
OUT/eval/{first,middle,last}_Zero_Shot_QA/  the same questions about one frame of each video
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.common.json_files import write_json
from playground.clips.clip import FRAMES, Clip, ClipRenderer, draw_clip
from playground.world import build as world
from playground.world.build import IMAGE_TOKEN, conversation, image_name
from playground.world.language import COLOURS, PLACES, ask
from playground.world.photos import Split
from playground.world.scene import Scene

CHUNK = 50
VIDEO_TOKEN = "<video>"
WHOLE = "clips"
SHOWN = {WHOLE: tuple(range(FRAMES)), "first": (0,), "middle": (FRAMES // 2,), "last": (FRAMES - 1,)}
"""Sets of held-out questions, and the frames of each video that they show."""


@dataclass(frozen=True)
class ClipsSize:
    """How much to write: pictures and clips to learn from, and clips whose questions are held out."""

    pictures: int = 6400
    train: int = 3200
    test: int = 100

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"The size {name!r} is {value}; it must be at least 1.")


def build_clips(out: Path, size: ClipsSize, seed: int = 0, workers: int = 2) -> None:
    """Writes all files under `out`. The same sizes and seed give the same bytes, whatever the number of workers."""
    scenes = world.write_images(out, "train", size.pictures, seed, workers)
    talked_about = write_videos(out / "videos" / "train", "train", size.train, seed, workers)
    asked_about = write_videos(out / "eval" / folder_of(WHOLE) / "videos", "test", size.test, seed, workers)
    rng = random.Random(seed)
    write_json(out / "pretrain.json", [world.caption_sample(n, scene) for n, scene in enumerate(scenes)], indent=1)
    write_json(out / "pictures.json", [about_picture(n, scene, rng) for n, scene in enumerate(scenes)], indent=1)
    write_json(out / "clips.json", [about_clip(n, clip, rng) for n, clip in enumerate(talked_about)], indent=1)
    for name in SHOWN:
        write_questions(out / "eval", name, asked_about)


def folder_of(name: str) -> str:
    """Folder of a set of held-out questions, named as Video-LLaVA names its own."""
    return f"{name}_Zero_Shot_QA"


def write_videos(folder: Path, split: Split, count: int, seed: int, workers: int) -> list[Clip]:
    """Draws and writes `count` clips of a split, each a folder of frames; returns them in order."""
    folder.mkdir(parents=True, exist_ok=True)
    write = partial(_write_chunk, folder, split, seed)
    return world.draw_in_chunks(write, count, CHUNK, workers, f"{split} clips", "clip")


def _write_chunk(folder: Path, split: Split, seed: int, numbers: range) -> list[Clip]:
    """Draws and writes one chunk. Its randomness depends on the seed, the split and its first number."""
    rng = np.random.default_rng([seed, 2 if split == "train" else 3, numbers.start])
    renderer = ClipRenderer(split)
    clips = []
    for number in numbers:
        clip = draw_clip(split, rng)
        place = folder / video_name(number)
        place.mkdir(exist_ok=True)
        for frame, pixels in enumerate(renderer(clip, rng)):
            Image.fromarray(pixels).save(place / f"{frame}.png", compress_level=1)
        clips.append(clip)
    return clips


def video_name(number: int) -> str:
    """Name of a clip's folder."""
    return f"{number:06d}"


def about_picture(number: int, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """A sample for instruction tuning: a picture, questions of the quickstart's kinds, and where two digits stand."""
    asked = [(question.text, question.answer) for question in ask(scene.digits, world.TURNS, rng)]
    for digit in rng.sample(scene.digits, 2):
        colour = COLOURS[digit.colour]
        asked.append((f"Which place is {colour}?", f"{colour} {PLACES[digit.place]}"))
    rng.shuffle(asked)
    turns = conversation(IMAGE_TOKEN, asked)
    return {"id": f"picture-{number:06d}", "image": image_name("train", number), "conversations": turns}


def about_clip(number: int, clip: Clip, rng: random.Random) -> dict[str, Any]:
    """A sample for instruction tuning: the clip and all questions about it, in random order."""
    asked = [(question.text, question.answer) for question in rng.sample(clip.questions, len(clip.questions))]
    turns = conversation(VIDEO_TOKEN, asked)
    return {"id": f"clip-{number:06d}", "video": f"train/{video_name(number)}", "conversations": turns}


def write_questions(folder: Path, name: str, clips: list[Clip]) -> None:
    """Writes the held-out questions of a set; where it shows single frames, those too, copied from the clips'."""
    questions, answers = [], []
    for number, clip in enumerate(clips):
        for which, question in enumerate(clip.held_out()):
            identity = f"{number}-{question.kind}-{which}"
            questions.append({"video_name": video_name(number), "question_id": identity, "question": question.text})
            answers.append({"question_id": identity, "answer": question.answer})
    place = folder / folder_of(name)
    for number in range(0 if name == WHOLE else len(clips)):
        source, target = (folder / folder_of(one) / "videos" / video_name(number) for one in (WHOLE, name))
        target.mkdir(parents=True, exist_ok=True)
        for frame in SHOWN[name]:
            shutil.copyfile(source / f"{frame}.png", target / f"{frame}.png")
    write_json(place / "test_q.json", questions, indent=1)
    write_json(place / "test_a.json", answers, indent=1)
