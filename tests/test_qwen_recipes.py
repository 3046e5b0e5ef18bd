"""The recipes of Qwen2.5-VL: what they run, Qwen's published settings, and real steps on a tiny model.

Command lines are kept in tests/recipes/qwen2_5_vl.txt; `python tests/test_qwen_recipes.py --record` writes them anew.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distributed import ENTRY, losses, weights
from fake_machine import MACHINES, ROOT, Shell, flags_of
from tiny_llava import write_assets
from tiny_qwen import write_qwen

from llava.checkpoints.opening import open_model
from llava.compression.config import CompressionConfig, V2VConfig
from llava.train.media_flags import warn_of_idle_budget
from llava.train.train import train

RECORD = ROOT / "tests/recipes/qwen2_5_vl.txt"
RECIPES = ("finetune", "finetune_lora")


def script(name: str) -> str:
    return f"scripts/qwen2_5_vl/{name}.sh"


def dry_runs(folder: Path) -> str:
    """Each recipe and its command on eight GPUs."""
    shell = Shell(folder, MACHINES["gpu8"].tools)
    return "".join(f"# {name}\n{shlex.join(shell.command(script(name)))}\n" for name in RECIPES)


@pytest.fixture
def gpu8(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "bin", MACHINES["gpu8"].tools)


def test_commands_are_those_on_record(tmp_path: Path) -> None:
    assert dry_runs(tmp_path / "bin") == RECORD.read_text(encoding="utf-8")


def test_settings_are_those_of_qwens_own_script_and_program(gpu8: Shell) -> None:
    for name in RECIPES:
        flags = flags_of(gpu8.command(script(name)))
        expected = {
            "--model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct",
            "--deepspeed": "./scripts/zero3.json",
            "--per_device_train_batch_size": "4",
            "--gradient_accumulation_steps": "4",
            "--num_train_epochs": "0.5",
            "--max_pixels": "50176",
            "--min_pixels": "784",
            "--model_max_length": "8192",
            "--warmup_steps": "0.03",
            "--lr_scheduler_type": "cosine",
            "--weight_decay": "0.",
            "--bf16": "True",
            "--activation_checkpointing": "True",
            "--tune_mm_vision": "False",
            "--compression": "qwen-share-70",
        }
        if name == "finetune":
            expected |= {"--tune_mm_llm": "True", "--tune_mm_mlp": "True", "--learning_rate": "2e-7"}
        else:
            expected |= {"--lora_enable": "True", "--lora_r": "64", "--lora_alpha": "128", "--lora_dropout": "0"}
            expected |= {"--lora_target_modules": "q,k,v,o", "--tune_mm_mlp": "False"}
        assert {flag: flags.get(flag) for flag in expected} == expected
        assert {"--version", "--vision_tower", "--image_aspect_ratio", "--mm_projector_type"}.isdisjoint(flags)


def test_every_variable_is_documented_and_reaches_its_flag(gpu8: Shell) -> None:
    own = [ROOT / script(name) for name in RECIPES]
    own += [ROOT / f"scripts/lib/{name}.sh" for name in ("qwen", "qwen2_5_vl", "by_processor")]
    used = {found for path in own for found in re.findall(r"\$\{!?([A-Z][A-Z0-9_]+)[:}-]", path.read_text())}
    status, out, _ = gpu8.run(script("finetune_lora"), "--help", cwd=gpu8.folder)
    assert status == 0 and out.startswith("Fine-tuning of Qwen2.5-VL")
    assert {word for word in used - {"BASH_SOURCE"} if not re.search(rf"\b{word}\b", out)} == set()
    videos = {
        "VIDEO_FOLDER": "v",
        "VIDEO_FPS": "1",
        "VIDEO_MIN_FRAMES": "2",
        "VIDEO_MAX_FRAMES": "6",
        "VIDEO_MIN_PIXELS": "3136",
        "VIDEO_MAX_PIXELS": "6272",
        "VISION_TOWER_LR": "1e-6",
        "TUNE_VISION": "True",
    }
    flags = flags_of(gpu8.command(script("finetune"), **videos))
    assert flags["--mm_vision_tower_lr"] == "1e-6" and flags["--tune_mm_vision"] == "True"
    assert {f"--{name.lower()}": flags[f"--{name.lower()}"] for name in videos if name.startswith("VIDEO_")} == {
        f"--{name.lower()}": value for name, value in videos.items() if name.startswith("VIDEO_")
    }


def test_a_preset_of_another_family_is_refused(gpu8: Shell) -> None:
    status, _, err = gpu8.run(script("finetune"), DRY_RUN="1", COMPRESSION="duet-192")
    assert status == 2 and "duet-192 is made for llava-1.5, but this trains a Qwen2.5-VL" in err


# === Real steps ===


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    write_qwen(folder / "qwen")
    budget = {"v2v": {"dominant": 0.5, "contextual": 0.25, "cluster_width": 2}, "t2v": {"layers": [2], "keep": [0.5]}}
    (folder / "shares.yaml").write_text(json.dumps(budget))
    return folder


def steps(name: str, assets: Path, shell: Shell, **changes: str) -> Path:
    """The folder of a run of three steps that a recipe plans."""
    variables = {
        "LAUNCHER": "python",
        "DEVICE": "cpu",
        "MODEL": str(assets / "qwen"),
        "COMPRESSION": str(assets / "shares.yaml"),
        "MAX_STEPS": "3",
        "DATA_PATH": str(assets / "chats.json"),
        "IMAGE_FOLDER": str(assets / "images"),
        "OUTPUT_DIR": str(assets / f"{name}-{len(changes)}"),
        "GLOBAL_BATCH_SIZE": "4",
        "MAX_LENGTH": "256",
        "MIN_PIXELS": "64",
        "MAX_PIXELS": "1024",
        "WORKERS": "0",
        "LEARNING_RATE": "1e-2",
        "LORA_R": "4",
    }
    command = shell.command(script(name), **variables | changes)
    return train(command[command.index(ENTRY) + 1 :])


def test_a_model_is_fine_tuned_and_saved_with_its_processor_and_limits(assets: Path, gpu8: Shell) -> None:
    folder = steps("finetune", assets, gpu8)
    seen = losses(folder)
    assert len(seen) == 3 and seen[-1] < seen[0]
    before, after = weights(assets / "qwen"), weights(folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.startswith("visual.merger") or not name.startswith("visual.") for name in moved} == {True}
    assert any(name.startswith("visual.merger") for name in moved) and "lm_head.weight" in moved
    opened = open_model(str(folder), device="cpu")
    v2v = opened.model.compression.v2v
    assert (v2v.dominant, v2v.contextual) == (0.5, 0.25)
    assert dict(opened.preprocessor.image_processor.size) == {"shortest_edge": 64, "longest_edge": 1024}
    assert {"video_preprocessor_config.json", "chat_template.jinja"} <= {path.name for path in folder.iterdir()}


def test_adapters_are_trained_on_attention_alone(assets: Path, gpu8: Shell) -> None:
    folder = steps("finetune_lora", assets, gpu8, MAX_STEPS="2")
    base, found = open_model(str(assets / "qwen"), device="cpu").model, open_model(str(folder), device="cpu").model
    changed = {name for name, weight in found.named_parameters() if not torch.equal(weight, base.get_parameter(name))}
    assert changed == {
        f"model.language_model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(4) for part in "qkvo"
    }


def test_a_budget_that_no_image_reaches_is_said(caplog: pytest.LogCaptureFixture) -> None:
    size = {"shortest_edge": 64, "longest_edge": 1024}
    processor = SimpleNamespace(image_processor=SimpleNamespace(size=size, patch_size=4, merge_size=2))
    caplog.set_level(logging.WARNING, "llava")
    warn_of_idle_budget(processor, CompressionConfig(V2VConfig(0.65, 0.05)))
    warn_of_idle_budget(processor, CompressionConfig(V2VConfig(10, 4)))
    assert not caplog.text
    warn_of_idle_budget(processor, CompressionConfig(V2VConfig(20, 4)))
    assert "An image has at most 16 tokens (--max_pixels 1024), and v2v leaves it 24: nothing is merged" in caplog.text


def test_limits_of_pixels_are_refused_for_a_llava(assets: Path, gpu8: Shell) -> None:
    command = gpu8.command(
        "scripts/v1_5/finetune.sh",
        "--max_pixels",
        "784",
        MODEL=str(assets / "lm"),
        DEVICE="cpu",
        LAUNCHER="python",
        COMPRESSION="none",
        DATA_PATH=str(assets / "chats.json"),
        OUTPUT_DIR=str(assets / "none"),
    )
    with pytest.raises(ValueError, match="--max_pixels 784 is a flag of models that keep the size of an image"):
        train(command[command.index(ENTRY) + 1 :])


def record() -> None:
    """Write the command lines."""
    with tempfile.TemporaryDirectory() as folder:
        RECORD.write_text(dry_runs(Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python tests/test_qwen_recipes.py --record")
    record()
