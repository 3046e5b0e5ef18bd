"""The recipes of Qwen3-VL and LLaVA-OneVision: what they run, their authors' settings, and real steps on tiny models.

Command lines are kept in tests/recipes; `python tests/test_more_recipes.py --record` writes them anew.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import ENTRY, losses, weights
from fake_machine import MACHINES, ROOT, Shell, flags_of
from tiny_llava import write_assets
from tiny_onevision import write_onevision
from tiny_qwen3 import write_qwen3

from llava.checkpoints.opening import open_model
from llava.train.train import train

FAMILIES: dict[str, Callable[..., Path]] = {"qwen3_vl": write_qwen3, "llava_onevision": write_onevision}
RECIPES = ("finetune", "finetune_lora")
ALL = pytest.mark.parametrize("family", FAMILIES)


def script(family: str, name: str) -> str:
    return f"scripts/{family}/{name}.sh"


def record_of(family: str) -> Path:
    return ROOT / f"tests/recipes/{family}.txt"


def dry_runs(family: str, folder: Path) -> str:
    """Each recipe and its command on eight GPUs."""
    shell = Shell(folder, MACHINES["gpu8"].tools)
    return "".join(f"# {name}\n{shlex.join(shell.command(script(family, name)))}\n" for name in RECIPES)


@pytest.fixture
def gpu8(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "bin", MACHINES["gpu8"].tools)


@ALL
def test_commands_are_those_on_record(family: str, tmp_path: Path) -> None:
    assert dry_runs(family, tmp_path / "bin") == record_of(family).read_text(encoding="utf-8")


USUAL = {
    "--deepspeed": "./scripts/zero3.json",
    "--bf16": "True",
    "--warmup_steps": "0.03",
    "--lr_scheduler_type": "cosine",
    "--weight_decay": "0.",
    "--activation_checkpointing": "True",
}
PUBLISHED: dict[str, dict[str, dict[str, str | None]]] = {
    "qwen3_vl": {
        "both": {
            "--model_name_or_path": "Qwen/Qwen3-VL-8B-Instruct",
            "--compression": "qwen3-share-70",
            "--per_device_train_batch_size": "4",
            "--gradient_accumulation_steps": "4",
            "--num_train_epochs": "0.5",
            "--min_pixels": str(32 * 32),
            "--max_pixels": str(64 * 32 * 32),
            "--model_max_length": "8192",
            "--tune_mm_vision": "False",
        },
        "finetune": {"--tune_mm_llm": "True", "--tune_mm_mlp": "True", "--learning_rate": "2e-7"},
        "finetune_lora": {
            "--lora_r": "64",
            "--lora_alpha": "128",
            "--lora_dropout": "0",
            "--lora_target_modules": "q,k,v,o",
            "--tune_mm_mlp": "False",
        },
    },
    "llava_onevision": {
        "both": {
            "--model_name_or_path": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "--compression": "onevision-share-70",
            "--per_device_train_batch_size": "1",
            "--gradient_accumulation_steps": "32",
            "--num_train_epochs": "1",
            "--model_max_length": "32768",
            "--frames_upbound": "32",
            "--group_by_modality_length": "True",
            "--tf32": "True",
            "--min_pixels": None,
        },
        "finetune": {
            "--tune_mm_llm": "True",
            "--tune_mm_mlp": "True",
            "--tune_mm_vision": "True",
            "--learning_rate": "1e-5",
            "--mm_vision_tower_lr": "2e-6",
            "--mm_projector_lr": None,
        },
        "finetune_lora": {
            "--lora_r": "128",
            "--lora_alpha": "256",
            "--lora_dropout": "0.05",
            "--learning_rate": "2e-4",
            "--mm_projector_lr": "2e-5",
            "--mm_vision_tower_lr": None,
            "--tune_mm_mlp": "True",
        },
    },
}


@ALL
def test_settings_are_those_of_the_authors(family: str, gpu8: Shell) -> None:
    for name in RECIPES:
        flags = flags_of(gpu8.command(script(family, name)))
        expected = USUAL | PUBLISHED[family]["both"] | PUBLISHED[family][name]
        assert {flag: flags.get(flag) for flag in expected} == expected
        assert ("--lora_enable" in flags) == (name == "finetune_lora")
        assert {"--version", "--vision_tower", "--image_aspect_ratio", "--mm_projector_type"}.isdisjoint(flags)


@ALL
def test_every_variable_is_documented(family: str, gpu8: Shell) -> None:
    libraries = [ROOT / f"scripts/lib/{name}.sh" for name in ("by_processor", family)]
    if family == "qwen3_vl":
        libraries.append(ROOT / "scripts/lib/qwen.sh")
    own = [ROOT / script(family, name) for name in RECIPES] + libraries
    used = {found for path in own for found in re.findall(r"\$\{!?([A-Z][A-Z0-9_]+)[:}-]", path.read_text())}
    status, out, _ = gpu8.run(script(family, "finetune_lora"), "--help", cwd=gpu8.folder)
    assert status == 0 and out.startswith("Fine-tuning of ") and "NUM_DEVICES" in out
    assert {word for word in used - {"BASH_SOURCE"} if not re.search(rf"\b{word}\b", out)} == set()


def test_variables_reach_their_flags(gpu8: Shell) -> None:
    given = {"VIDEO_FOLDER": "v", "TUNE_VISION": "True", "VISION_TOWER_LR": "3e-6", "PROJECTOR_LR": "4e-5"}
    for family, own in (
        ("qwen3_vl", {"VIDEO_FPS": "1", "VIDEO_MAX_FRAMES": "6", "VIDEO_MIN_PIXELS": "4096", "MAX_PIXELS": "131072"}),
        ("llava_onevision", {"VIDEO_FRAMES": "8"}),
    ):
        flags = flags_of(gpu8.command(script(family, "finetune"), **given, **own))
        names = {"VISION_TOWER_LR": "mm_vision_tower_lr", "PROJECTOR_LR": "mm_projector_lr"}
        names |= {"TUNE_VISION": "tune_mm_vision", "VIDEO_FRAMES": "frames_upbound"}
        for name, value in (given | own).items():
            assert flags[f"--{names.get(name, name.lower())}"] == value, name


def test_a_part_that_is_not_trained_gets_no_rate(gpu8: Shell) -> None:
    """The trainer refuses a rate for a frozen part, and the default is not the user's."""
    path = script("llava_onevision", "finetune")
    assert "--mm_vision_tower_lr" not in gpu8.command(path, TUNE_VISION="False")
    assert "--mm_vision_tower_lr" not in gpu8.command(path, "--tune_mm_vision", "False")
    path = script("llava_onevision", "finetune_lora")
    assert "--mm_projector_lr" not in gpu8.command(path, TUNE_MLP="False")
    assert flags_of(gpu8.command(path, TUNE_VISION="True"))["--mm_vision_tower_lr"] == "2e-6"


@ALL
def test_what_does_not_fit_is_refused(family: str, gpu8: Shell) -> None:
    name = {"qwen3_vl": "Qwen3-VL", "llava_onevision": "LLaVA-OneVision"}[family]
    status, _, err = gpu8.run(script(family, "finetune"), DRY_RUN="1", COMPRESSION="qwen-share-70")
    assert status == 2 and f"qwen-share-70 is made for qwen2.5-vl, but this trains a {name}; give one" in err
    status, _, err = gpu8.run(script(family, "finetune"), DRY_RUN="1", TUNE_LLM="perhaps")
    assert status == 2 and "TUNE_LLM is 'perhaps'; accepted are True and False" in err


# === Real steps ===


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    for name, write in FAMILIES.items():
        write(folder / name)
    budget = {"v2v": {"dominant": 0.5, "contextual": 0.25, "cluster_width": 2}, "t2v": {"layers": [2], "keep": [0.5]}}
    (folder / "shares.yaml").write_text(json.dumps(budget))
    return folder


def steps(family: str, name: str, assets: Path, shell: Shell) -> Path:
    """The folder of a run of three steps that a recipe plans."""
    variables = {
        "LAUNCHER": "python",
        "DEVICE": "cpu",
        "MODEL": str(assets / family),
        "COMPRESSION": str(assets / "shares.yaml"),
        "MAX_STEPS": "3",
        "DATA_PATH": str(assets / "chats.json"),
        "IMAGE_FOLDER": str(assets / "images"),
        "OUTPUT_DIR": str(assets / f"{family}-{name}"),
        "GLOBAL_BATCH_SIZE": "4",
        "BATCH_SIZE": "4",
        "MAX_LENGTH": "512",
        "MIN_PIXELS": "64",
        "MAX_PIXELS": "1024",
        "TF32": "False",
        "WORKERS": "0",
        "LEARNING_RATE": "1e-2",
        "VISION_TOWER_LR": "1e-2" if (family, name) == ("llava_onevision", "finetune") else "",
        "LORA_R": "4",
    }
    command = shell.command(script(family, name), **variables)
    return train(command[command.index(ENTRY) + 1 :])


def moved(family: str, folder: Path, assets: Path) -> tuple[Any, set[str]]:
    """What a run left, opened, and the names of the weights that it changed."""
    base, found = open_model(str(assets / family), device="cpu").model, open_model(str(folder), device="cpu").model
    changed = {name for name, weight in found.named_parameters() if not torch.equal(weight, base.get_parameter(name))}
    return found, changed


@ALL
def test_the_parts_of_a_recipe_are_trained_and_saved(family: str, assets: Path, gpu8: Shell) -> None:
    folder = steps(family, "finetune", assets, gpu8)
    assert len(losses(folder)) == 3 and losses(folder)[-1] < losses(folder)[0] and weights(folder)
    found, changed = moved(family, folder, assets)
    assert (found.compression.v2v.dominant, found.compression.v2v.contextual) == (0.5, 0.25)
    parts = {
        part
        for part in ("language_model", "visual.blocks", "merger", "vision_tower", "projector")
        if any(part in name for name in changed)
    }
    expected = {"language_model", *(("merger",) if family == "qwen3_vl" else ("vision_tower", "projector"))}
    assert parts == expected
    assert {"preprocessor_config.json", "chat_template.jinja"} <= {path.name for path in folder.iterdir()}


@ALL
def test_adapters_are_trained_where_the_recipe_says(family: str, assets: Path, gpu8: Shell) -> None:
    _, changed = moved(family, steps(family, "finetune_lora", assets, gpu8), assets)
    maps = {f"self_attn.{part}_proj" for part in "qkvo"}
    if family == "llava_onevision":
        maps |= {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    adapted = {f"model.language_model.layers.{layer}.{part}.weight" for layer in range(4) for part in maps}
    beside = {name for name in changed if "multi_modal_projector" in name}
    assert changed - {"model.image_newline"} == adapted | beside and bool(beside) == (family == "llava_onevision")


def record() -> None:
    """Write the command lines."""
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            record_of(family).write_text(dry_runs(family, Path(folder) / family), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python tests/test_more_recipes.py --record")
    record()
