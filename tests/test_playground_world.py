"""The playground's world: reproducible, honest about its split, in LLaVA's formats; its assets load and are small."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import leaves_ctrl_c_to_its_parent
from PIL import Image

pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from playground.world.build import WorldSize, build_world
from playground.world.language import COLOURS, NUMBERS, PLACES, Digit, ask, describe
from playground.world.photos import PHOTOS, load_photos
from playground.world.scene import GRID, IMAGE_SIZE, Renderer, draw_scene, split_digits

ASSETS = Path(__file__).parent.parent / "playground" / "assets"
SIZE = WorldSize(pretrain=8, instruct=20, test=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world on disk."""
    out = tmp_path_factory.mktemp("world")
    build_world(out, SIZE, seed=3, workers=1)
    return out


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_whatever_the_workers(world: Path, tmp_path: Path) -> None:
    build_world(tmp_path, SIZE, seed=3, workers=2)
    assert _files(tmp_path) == _files(world)


def test_another_seed_gives_another_world(world: Path, tmp_path: Path) -> None:
    build_world(tmp_path, SIZE, seed=4, workers=1)
    assert (tmp_path / "instruct.json").read_text() != (world / "instruct.json").read_text()


def test_train_and_test_share_no_handwriting() -> None:
    train, test = set(split_digits("train")), set(split_digits("test"))
    assert not train & test
    assert len(train | test) == 1797
    rng = np.random.default_rng(0)
    for split, allowed in (("train", train), ("test", test)):
        drawn = {item.sample for _ in range(100) for item in draw_scene(split, rng).placed}
        assert drawn <= allowed


def test_train_and_test_share_no_background() -> None:
    for left, right in zip(load_photos("train"), load_photos("test"), strict=True):
        assert min(left.width, right.width) >= IMAGE_SIZE
    assert len(load_photos("train")) == len(PHOTOS)


def test_digits_of_a_scene_differ_and_do_not_overlap() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = draw_scene("train", rng)
        digits = scene.digits
        assert 2 <= len(digits) <= 4
        for attribute in ("number", "colour", "place"):
            assert len({getattr(digit, attribute) for digit in digits}) == len(digits)
        number, colour = scene.patch_labels()
        assert number.shape == (GRID, GRID) and GRID * GRID >= 144
        assert (number >= 0).sum() == 4 * len(digits) == (colour >= 0).sum()


def test_digits_are_painted_where_the_labels_say() -> None:
    rng = np.random.default_rng(2)
    renderer = Renderer("train")
    for _ in range(20):
        scene = draw_scene("train", rng)
        state = rng.bit_generator.state
        image = renderer(scene, rng).astype(int)
        rng.bit_generator.state = state
        empty = renderer(type(scene)(()), rng).astype(int)
        changed = np.abs(image - empty).sum(-1).reshape(GRID, IMAGE_SIZE // GRID, GRID, -1).mean((1, 3))
        number, _ = scene.patch_labels()
        assert changed[number >= 0].mean() > 20 * changed[number < 0].mean()


def test_formats(world: Path) -> None:
    pretrain = json.loads((world / "pretrain.json").read_text())
    instruct = json.loads((world / "instruct.json").read_text())
    questions = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    assert (len(pretrain), len(instruct), len(questions)) == (SIZE.pretrain, SIZE.instruct, SIZE.test)
    for sample in pretrain:
        human, answer = sample["conversations"]
        assert human == {"from": "human", "value": "<image>"} and answer["from"] == "gpt"
    for sample in instruct:
        turns = sample["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert "".join(turn["value"] for turn in turns).count("<image>") == 1
        assert turns[0]["value"].startswith("<image>\n")
    for question in questions:
        assert set(question) == {"question_id", "image", "text", "answer", "category"}
    for name in [sample["image"] for sample in pretrain + instruct + questions]:
        with Image.open(world / "images" / name) as image:
            assert image.size == (IMAGE_SIZE, IMAGE_SIZE) and image.mode == "RGB"


def test_every_answer_follows_from_the_caption() -> None:
    rng = random.Random(0)
    for _ in range(100):
        count = rng.randint(2, 4)
        digits = [
            Digit(*values)
            for values in zip(
                *(rng.sample(range(n), count) for n in (len(NUMBERS), len(COLOURS), len(PLACES))), strict=True
            )
        ]
        phrases = describe(digits).split(", ")
        for question in ask(digits, 3, rng):
            reference, value = question.answer.rsplit(" ", 1)
            assert reference in question.text and value not in question.text
            matching = [phrase for phrase in phrases if reference in phrase]
            assert len(matching) == 1 and value in matching[0].split()


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="'test' is 0"):
        WorldSize(test=0)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'validation'"):
        load_photos("validation")  # type: ignore[arg-type]


def test_assets_are_small_and_load() -> None:
    from transformers import AutoTokenizer, CLIPVisionModel, LlamaForCausalLM

    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 8 * 2**20
    tower = CLIPVisionModel.from_pretrained(ASSETS / "vision_tower")
    model = LlamaForCausalLM.from_pretrained(ASSETS / "language_model")
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "language_model")
    assert tower.config.image_size // tower.config.patch_size == GRID
    assert model.config.num_hidden_layers == 8 and model.config.vocab_size == len(tokenizer)


def test_tokenizer_behaves_like_llamas() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "language_model")
    prompt = "USER: What digit is red? ASSISTANT:"
    answered = f"{prompt} red three</s>"
    ids = tokenizer(prompt).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer(answered).input_ids[: len(ids)] == ids
    assert len(tokenizer(answered).input_ids) == len(ids) + 3
    assert tokenizer.decode(tokenizer(answered).input_ids, skip_special_tokens=True) == f"{prompt} red three"
    assert tokenizer.decode(tokenizer("naïve ☃ text").input_ids, skip_special_tokens=True) == "naïve ☃ text"


def test_language_model_answers_about_text() -> None:
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from playground.pretrain.language_model import measure_language_model

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "language_model")
    model = LlamaForCausalLM.from_pretrained(ASSETS / "language_model", dtype=torch.float32)
    right = measure_language_model(model, tokenizer, samples=24)
    assert right["slots"] > 0.95 and right["slots, dropping"] > 0.95


def test_ctrl_c_while_images_are_drawn_ends_with_a_word(tmp_path: Path) -> None:
    """The processes that draw hear it as well, and say nothing of their own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "playground.world", "--out", str(tmp_path / "data"), "--train", "5000"],
        cwd=ASSETS.parents[1],
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    try:
        drawing = psutil.Process(process.pid)
        while not (any((tmp_path / "data").glob("images/train/*")) and len(drawing.children()) == 2):
            assert process.poll() is None
            time.sleep(0.05)
        while not all(map(leaves_ctrl_c_to_its_parent, drawing.children())):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said and said.endswith("Stopped.\n"), said
