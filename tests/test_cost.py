"""The cost table: what is computed is checked against what caches hold, and every measurement is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from tiny_folder import write_model

from llava.compression.config import CompressionConfig
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.cost.flops import training_flops, visual_tokens_per_layer
from llava.cost.seen_media import SeenMedium
from llava.cost.shapes import MODELS
from llava.eval import cost
from llava.eval.cost import BatchShape, decode_rate, main, measure, table
from llava.model import LlavaConfig
from llava.model.measured_work import shapes_of_model
from llava.model.random_weights import random_batch, random_config, random_model

BUDGETS = {"none": CompressionConfig(), "duet": CompressionConfig.resolve(tiny.DUET)}
LOAD = BatchShape(rows=3, text_tokens=20, images=2, new_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny")


def test_bytes_tokens_and_flops_of_a_batch():
    model = tiny.tiny_llava(kv_heads=1, dtype=torch.float32)
    dense, duet = measure(model, BUDGETS, LOAD, repeats=2)
    assert dense.visual_tokens == (32,) * 6 and duet.visual_tokens == (20, 20, 10, 10, 4, 4)
    per_token = 2 * 8 * 4  # key and value, one head of 8 numbers, 4 bytes
    assert dense.kv_bytes == 3 * 6 * (20 + 32) * per_token
    assert duet.kv_bytes == 3 * (6 * 20 + 68) * per_token
    assert duet.flops < dense.flops
    for row in (dense, duet):
        assert len(row.prefill_seconds) == len(row.decode_seconds) == 2
        assert all(seconds > 0 for seconds in row.prefill_seconds + row.decode_seconds)
        assert row.peak_bytes is None
    row.decode_seconds = [0.5, 1.0, 1.5]
    assert decode_rate(row, LOAD) == 3 * 3 / 1.0


def test_a_cache_of_another_size_stops_the_run(monkeypatch: pytest.MonkeyPatch):
    model = tiny.tiny_llava(dtype=torch.float32)
    monkeypatch.setattr(cost, "kv_bytes", lambda tokens, text, shape, width: 1000)
    with pytest.raises(RuntimeError, match=r"After the prefill the KV cache of 'none' holds \d+ bytes, but 3000"):
        measure(model, BUDGETS, LOAD, repeats=1)


def test_text_alone_and_a_tower_that_keeps_cls():
    model = tiny.tiny_llava(dtype=torch.float32, mm_vision_select_feature="cls_patch")
    dense, duet = measure(model, BUDGETS, BatchShape(2, 10, 1, 2), repeats=1)
    assert dense.visual_tokens[0] == 17 and duet.visual_tokens[0] == 10
    (plain,) = measure(model, {"none": BUDGETS["none"]}, BatchShape(2, 10, 0, 2), repeats=1)
    assert plain.visual_tokens == (0,) * 6


def test_the_table_compares_with_the_first_budget():
    model = tiny.tiny_llava(dtype=torch.float32)
    rows = measure(model, BUDGETS, LOAD, repeats=1)
    rows[0].prefill_seconds, rows[1].prefill_seconds = [3.0, 4.0, 5.0], [1.0, 2.0, 30.0]
    rows[0].decode_seconds, rows[1].peak_bytes = [9.0], 3 * 2**29
    lines = table(rows, LOAD).splitlines()
    assert len({len(line[: line.index("x ")]) for line in lines[2:]}) == 1, "columns stand below each other"
    assert "4000.0 (3000.0-5000.0)" in lines[2] and "1.00x" in lines[2] and "not measured" in lines[2]
    assert "2000.0 (1000.0-30000.0)" in lines[3] and "2.00x" in lines[3]
    assert f"{rows[0].flops / rows[1].flops:.2f}x" in lines[3] and "1.50" in lines[3]
    assert "0-1: 20, 2-3: 10, 4-5: 4" in lines[3]


def test_the_command_line_prints_and_writes_everything(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    budget = tmp_path / "duet.yaml"
    budget.write_text("v2v: {dominant: 5, contextual: 2}\nt2v: {layers: [2], keep: [0.5]}\n")
    target = tmp_path / "cost.json"
    words = ["--model-path", str(folder), "--compression", f"none,{budget}", "--batch-size", "2", "--device", "cpu"]
    words += ["--text-tokens", "12", "--new-tokens", "3", "--repeats", "2", "--json", str(target)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed and "batch of 2: 12 text tokens and 1 image(s) a row" in printed
    assert "0-1: 7, 2-5: 3" in printed
    document = json.loads(target.read_text())
    assert document["load"] == {"rows": 2, "text_tokens": 12, "images": 1, "new_tokens": 3}
    assert [row["budget"] for row in document["budgets"]] == ["none", str(budget)]
    assert all(len(row["prefill_seconds"]) == 2 and row["peak_bytes"] is None for row in document["budgets"])
    assert main([*words[:2], "--random-weights", *words[2:]]) == 0, "the shape of a folder, without its weights"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"holds a bert, which is no model that is shown images"):
        random_config(str(tmp_path))
    capsys.readouterr()
    assert main([*words, "--also", "train", "tower", "--activation-checkpointing"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"training step +none .* 1\.00x faster, FLOP limit 1\.00x\n", printed)
    assert re.search(r"vision tower +none .* \+0\.0%\n", printed)
    none, duet = json.loads(target.read_text())["budgets"]
    assert len(duet["train_seconds"]) == len(duet["tower_seconds"]) == 2
    config = LlavaConfig.from_pretrained(folder)
    decoder, vision = shapes_of_model(config)
    tokens = visual_tokens_per_layer(CompressionConfig.from_yaml(budget), decoder.layers, vision)
    assert duet["train_flops"] == training_flops(tokens, 12, decoder, vision, passes=4) < none["train_flops"]


def test_what_does_not_fit_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]):
    base = ["--model-path", str(folder), "--device", "cpu"]
    for words, reason in (
        ([*base, "--compression", "none,duet-192"], "Budget 'duet-192' does not fit this model"),
        ([*base, "--compression", "pyramiddrop"], "Budget 'pyramiddrop' does not fit this model"),
        ([*base, "--compression", ","], "--compression names no budget"),
        ([*base, "--batch-size", "0"], "--batch-size is 0"),
        ([*base, "--new-tokens", "1"], "--new-tokens is 1"),
        ([*base, "--compression", "none", "--repeats", "0"], "--repeats is 0"),
        ([*base, "--also", "tower", "--images", "0"], "--also tower measures the vision tower, but --images is 0"),
        ([*base, "--json", "nowhere/cost.json"], "--json names a file in 'nowhere'"),
        (["--model-path", "llava-1.5-7b", "--device", "cpu"], "add --random-weights"),
        (["--model-path", "nothing", "--device", "cpu", "--random-weights"], "There is no shape 'nothing'"),
        (["--model-path", "nothing", "--repeats", "-1"], "--repeats is -1"),  # said before a model is looked for
    ):
        assert main(words) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("name", MODELS)
def test_named_shapes_have_their_dimensions(name: str):
    model = random_model(name, torch.device("meta"), torch.bfloat16)
    decoder, vision = shapes_of_model(model.config)
    assert decoder == MODELS[name]
    assert isinstance(vision, SeenMedium)
    assert (vision.plain, vision.tower.layers, vision.tower.width) == (576, 23, 1024)
    assert model.dtype == torch.bfloat16


def test_a_random_batch_is_one_that_training_takes():
    """The image behind the first half of the text, the last fifth of the text supervised, equal every time."""
    model = tiny.tiny_llava(dtype=torch.float32)
    batch = random_batch(model, 2, 10, 2, labels=True)
    assert [(row == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist() for row in batch["input_ids"]] == [[5, 6]] * 2
    supervised = batch["labels"] != IGNORE_INDEX
    assert supervised.nonzero()[:, 1].tolist() == [10, 11, 10, 11]
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
    assert batch["images"].shape == (4, 3, 56, 56) and torch.isfinite(model(**batch).loss)
    assert all(torch.equal(batch[name], values) for name, values in random_batch(model, 2, 10, 2, True).items())
