"""Writes the visual question-answering set: PNG images and JSON in LLaVA's formats.

OUT/images/{train,test}/000000.png
OUT/pretrain.json    image -> caption, for training the projector
OUT/instruct.json    image -> conversation of a few questions, for instruction tuning
OUT/test.jsonl       one held-out question per line: question_id, image, text, answer, category
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from llava.common.child_processes import forks_end_with_parent
from llava.common.json_files import write_json
from llava.common.json_lines import write_lines
from playground.world.language import ask, describe
from playground.world.photos import Split
from playground.world.scene import Renderer, Scene, draw_scene

CHUNK = 250
TURNS = 3
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class WorldSize:
    """How much to write: images to caption, images to talk about, and held-out questions (one image each)."""

    pretrain: int = 6400
    instruct: int = 10240
    test: int = 2000

    def __post_init__(self) -> None:
        for name in ("pretrain", "instruct", "test"):
            if getattr(self, name) < 1:
                raise ValueError(f"The size {name!r} is {getattr(self, name)}; it must be at least 1.")


def build_world(out: Path, size: WorldSize, seed: int = 0, workers: int = 2) -> None:
    """Writes all files under `out`.  The same sizes and seed give the same bytes, whatever the number of workers.

    Captions and conversations share images: the first ones are captioned.
    """
    train = write_images(out, "train", max(size.pretrain, size.instruct), seed, workers)
    test = write_images(out, "test", size.test, seed, workers)
    rng = random.Random(seed)
    _write_json(out / "pretrain.json", [caption_sample(i, train[i]) for i in range(size.pretrain)])
    _write_json(out / "instruct.json", [conversation_sample(i, train[i], rng) for i in range(size.instruct)])
    write_lines(out / "test.jsonl", (held_out_question(i, scene, rng) for i, scene in enumerate(test)))


def write_images(out: Path, split: Split, count: int, seed: int, workers: int) -> list[Scene]:
    """Draws and writes `count` images of a split and returns their scenes in order."""
    (out / "images" / split).mkdir(parents=True, exist_ok=True)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    write = partial(_write_chunk, out, split, seed)
    scenes: list[Scene] = []
    bar = tqdm(total=count, desc=f"{split} images", unit="image")
    with bar, forks_end_with_parent(), ProcessPoolExecutor(workers) as pool:
        for drawn in pool.map(write, chunks):
            scenes += drawn
            bar.update(len(drawn))
    return scenes


def _write_chunk(out: Path, split: Split, seed: int, indices: range) -> list[Scene]:
    """Draws and writes the images of one chunk.  Its randomness depends on the seed, the split and its first index."""
    rng = np.random.default_rng([seed, 0 if split == "train" else 1, indices.start])
    renderer = Renderer(split)
    scenes = []
    for index in indices:
        scene = draw_scene(split, rng)
        Image.fromarray(renderer(scene, rng)).save(out / "images" / image_name(split, index), compress_level=1)
        scenes.append(scene)
    return scenes


def image_name(split: Split, index: int) -> str:
    """Path of an image below the image folder."""
    return f"{split}/{index:06d}.png"


def caption_sample(index: int, scene: Scene) -> dict[str, Any]:
    """A sample for projector pre-training: the image and its caption."""
    turns = [_turn("human", IMAGE_TOKEN), _turn("gpt", describe(scene.digits))]
    return {"id": f"caption-{index:06d}", "image": image_name("train", index), "conversations": turns}


def conversation_sample(index: int, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """A sample for instruction tuning: the image and a few different questions about it."""
    turns: list[dict[str, str]] = []
    for question in ask(scene.digits, TURNS, rng):
        text = question.text if turns else f"{IMAGE_TOKEN}\n{question.text}"
        turns += [_turn("human", text), _turn("gpt", question.answer)]
    return {"id": f"talk-{index:06d}", "image": image_name("train", index), "conversations": turns}


def held_out_question(index: int, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """One held-out question about one image."""
    question = ask(scene.digits, 1, rng)[0]
    return {
        "question_id": index,
        "image": image_name("test", index),
        "text": question.text,
        "answer": question.answer,
        "category": question.kind,
    }


def _turn(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}


def _write_json(path: Path, samples: Sequence[dict[str, Any]]) -> None:
    write_json(path, samples, indent=1)
