"""Writes the visual question-answering set: PNG images and JSON in LLaVA's formats.

OUT/images/{train,test}/000000.png
OUT/pretrain.json    image -> caption, for training the projector
OUT/instruct.json    image -> conversation of a few questions, for instruction tuning
OUT/test.jsonl       one held-out question per line: question_id, image, text, answer, category
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class WorldSize:
    """How much to write: images to caption, images to talk about, and held-out questions (one image each)."""

    pretrain: int = 6400
    instruct: int = 10240
    test: int = 2000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"The size {name!r} is {value}; it must be at least 1.")


def build_world(out: Path, size: WorldSize, seed: int = 0, workers: int = 2) -> None:
    """Writes all files under `out`.  The same sizes and seed give the same bytes, whatever the number of workers.

    Captions and conversations share images: the first ones are captioned.
    """
    train = write_images(out, "train", max(size.pretrain, size.instruct), seed, workers)
    test = write_images(out, "test", size.test, seed, workers)
    rng = random.Random(seed)
    captions = [caption_sample(i, train[i]) for i in range(size.pretrain)]
    write_json(out / "pretrain.json", captions, indent=1)
    talks = [conversation_sample(i, train[i], rng) for i in range(size.instruct)]
    write_json(out / "instruct.json", talks, indent=1)
    write_lines(out / "test.jsonl", (held_out_question(i, scene, rng) for i, scene in enumerate(test)))


def write_images(out: Path, split: Split, count: int, seed: int, workers: int) -> list[Scene]:
    """Draws and writes `count` images of a split and returns their scenes in order."""
    (out / "images" / split).mkdir(parents=True, exist_ok=True)
    write = partial(_write_chunk, out, split, seed)
    return draw_in_chunks(write, count, CHUNK, workers, f"{split} images", "image")


def draw_in_chunks(
    draw: Callable[[range], list[Drawn]], count: int, chunk: int, workers: int, title: str, unit: str
) -> list[Drawn]:
    """Everything of the numbers below `count`, in order, drawn by several processes.

    Args:
        draw: draws what has the numbers of a range.
        count: how many there are.
        chunk: numbers that a process draws at a time.
        workers: number of processes.
        title, unit: of the progress bar.
    """
    chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    found: list[Drawn] = []
    bar = tqdm(total=count, desc=title, unit=unit)
    with bar, forks_end_with_parent(), ProcessPoolExecutor(workers) as pool:
        for drawn in pool.map(draw, chunks):
            found += drawn
            bar.update(len(drawn))
    return found


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
    turns = [{"from": "human", "value": IMAGE_TOKEN}, {"from": "gpt", "value": describe(scene.digits)}]
    return {"id": f"caption-{index:06d}", "image": image_name("train", index), "conversations": turns}


def conversation_sample(index: int, scene: Scene, rng: random.Random) -> dict[str, Any]:
    """A sample for instruction tuning: the image and a few different questions about it."""
    turns = conversation(IMAGE_TOKEN, [(question.text, question.answer) for question in ask(scene.digits, TURNS, rng)])
    return {"id": f"talk-{index:06d}", "image": image_name("train", index), "conversations": turns}


def conversation(token: str, asked: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """The turns of questions with their answers, `token` in front of the first."""
    turns: list[dict[str, str]] = []
    for question, answer in asked:
        text = question if turns else f"{token}\n{question}"
        turns += [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return turns


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
