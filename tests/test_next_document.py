"""docs/llava-next.md: commands run on a model as deep as the one it names, scripts are planned, the Python runs."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import tiny_text
import torch
from eval_files_vqa import WRITERS
from fake_machine import MACHINES, Shell
from tiny import tiny_llava
from tiny_llava import write_assets
from tiny_next import picture
from transformers import CLIPImageProcessorPil, CLIPVisionConfig

from llava.common.anyres import best_canvas, canvases_of, default_pinpoints
from llava.compression.config import CompressionConfig
from llava.cost.flops import average_visual_tokens, tokens_per_layer
from llava.model.crop_merging import CropMerging

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/llava-next.md").read_text(encoding="utf-8")
NAME = "liuhaotian/llava-v1.6-vicuna-7b"
QUICK = {
    "llava.serve.cli": ["--device", "cpu", "--max-new-tokens", "3"],
    "llava.eval.run_llava": ["--device", "cpu", "--max_new_tokens", "3"],
    "llava.eval.run": ["--device", "cpu", "--max-new-tokens", "2"],
    "llava.eval.cost": ["--device", "cpu", "--repeats", "1", "--new-tokens", "2", "--text-tokens", "20"],
    "llava.data.check": ["--workers", "0"],
}


def commands() -> list[str]:
    found = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    assert len(found) > 10
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 32 layers that sees as many tokens as the published one, a picture, data and a benchmark."""
    folder = tmp_path_factory.mktemp("page")
    tokenizer = tiny_text.llama_legacy()
    tower = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=336,
        patch_size=14,
    )
    model = tiny_llava(
        layers=32,
        width=16,
        heads=1,
        kv_heads=1,
        dtype=torch.float32,
        vocab_size=len(tokenizer),
        mm_vision_config=tower.to_dict(),
        mm_patch_merge_type="spatial_unpad",
        image_aspect_ratio="anyres",
        image_grid_pinpoints=default_pinpoints(336),
        max_position_embeddings=4096,
        eos_token_id=2,
    )
    model.config.compression = None
    tower_processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    model.get_vision_tower().image_processor = tower_processor
    model.save_pretrained(folder / NAME)
    tokenizer.save_pretrained(folder / NAME)
    picture((60, 40)).save(folder / "cat.png")
    write_assets(folder / "data")
    WRITERS["pope"](folder / "data/eval")
    return folder


def test_every_command_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    for line in commands():
        if not line.startswith("python -m "):
            continue
        words = shlex.split(line)
        monkeypatch.setattr("sys.stdin", io.StringIO("What is this?\n"))
        monkeypatch.setattr(sys, "argv", [words[2], *words[3:], *QUICK.get(words[2], [])])
        try:
            runpy.run_module(words[2], run_name="__main__")
        except SystemExit as done:
            assert not done.code, (line, done.code, capsys.readouterr().err[-2000:])
        assert capsys.readouterr().out, line
    assert list((place / "report").iterdir())
    assert json.loads((place / "converted/config.json").read_text())["model_type"] == "llava_next"


def test_every_script_is_planned(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", MACHINES["gpu8"].tools)
    for line in commands():
        if "bash scripts/" not in line:
            continue
        *settings, _, script = shlex.split(line.replace("reproduce.sh next-640", "reproduce.sh"))
        words = ["next-640"] if script.endswith("reproduce.sh") else []
        variables = dict(setting.split("=") for setting in settings)
        status, said, wrong = shell.run(script, *words, DRY_RUN="1", **variables)
        assert status == 0, wrong
        assert all(value in said for value in variables.values()) and "next-640" in said


def test_the_python_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    Path("script.py").write_text(script.replace('"cuda"', '"cpu"').replace("max_new_tokens=32", "max_new_tokens=2"))
    runpy.run_path("script.py")
    assert capsys.readouterr().out


def test_the_figures_are_those_of_the_presets_and_of_the_choice() -> None:
    merging = CropMerging.of("spatial_unpad", "anyres", default_pinpoints(336), 336, 24)
    for size, tokens in (((672, 672), 2928), ((1920, 1080), 1948)):
        assert merging.count(5, size) == tokens and f"{tokens:,} " in TEXT
    for name in ("next-640", "next-320", "next-160"):
        config = CompressionConfig.from_preset(name)
        crop = config.v2v.token_count(577)
        average = average_visual_tokens(tokens_per_layer(config.t2v, 5 * crop, 32))
        row = f"| `{name}` | {config.v2v.dominant} + {config.v2v.contextual} | "
        assert row + f"{3 * crop}, {4 * crop}, {5 * crop:,} | {round(average)} |" in TEXT
    canvases = canvases_of(default_pinpoints(336), 336)
    sizes = [(width, height) for width in range(1, 1500, 7) for height in range(1, 1500, 11)]
    differ = 0
    for width, height in sizes:
        columns, rows = (side // 14 for side in best_canvas((width, height), canvases))
        wide = width / height > columns / rows
        kept = height * (columns / width) if wide else width * (rows / height)
        differ += int(kept) != int(round(kept, 7))
    assert f"of {len(sizes):,} sizes {differ} differ" in TEXT
