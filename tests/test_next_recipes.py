"""LLaVA-NeXT's recipes: the commands on record, the released settings, and a few real steps of each.

`python tests/test_next_recipes.py --record` writes the record anew.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from distributed import losses, weights
from fake_machine import MACHINES, ROOT, Shell, flags_of
from test_recipes_run import planned
from tiny_llava import write_assets
from transformers import AutoModelForImageTextToText, LlavaNextForConditionalGeneration

from llava.checkpoints.conversion import convert
from llava.checkpoints.opening import open_model
from llava.train.train import train

RECORD = ROOT / "tests/recipes/next-gpu8.txt"
RECIPES = ("pretrain", "finetune", "finetune_lora")


def script(name: str) -> str:
    return f"scripts/v1_6/{name}.sh"


def commands(folder: Path) -> dict[str, list[str]]:
    shell = Shell(folder, MACHINES["gpu8"].tools)
    return {name: shell.command(script(name)) for name in RECIPES}


def as_record(found: dict[str, list[str]]) -> str:
    return "".join(f"# {name}\n{shlex.join(words)}\n" for name, words in found.items())


def test_commands_are_those_on_record_with_the_released_settings(tmp_path: Path) -> None:
    found = commands(tmp_path / "bin")
    assert as_record(found) == RECORD.read_text(encoding="utf-8")
    released = {  # samples of a device and of a step, and the rates of language model, projector and tower
        "pretrain": (8, 256, {"--learning_rate": "1e-3", "--mm_projector_lr": None, "--mm_vision_tower_lr": None}),
        "finetune": (4, 128, {"--learning_rate": "2e-5", "--mm_projector_lr": "2e-5", "--mm_vision_tower_lr": "2e-6"}),
        "finetune_lora": (
            4,
            128,
            {"--learning_rate": "2e-4", "--mm_projector_lr": "2e-5", "--mm_vision_tower_lr": None},
        ),
    }
    for name, words in found.items():
        device, step, rates = released[name]
        flags = flags_of(words)
        expected = rates | {
            "--compression": "next-640",
            "--model_name_or_path": "lmsys/vicuna-7b-v1.5",
            "--vision_tower": "openai/clip-vit-large-patch14-336",
            "--version": "plain" if name == "pretrain" else "v1",
            "--image_aspect_ratio": "anyres",
            "--mm_patch_merge_type": "spatial_unpad",
            "--image_grid_pinpoints": None,
            "--deepspeed": "./scripts/zero2.json",
            "--per_device_train_batch_size": str(device),
            "--gradient_accumulation_steps": str(step // device // 8),
            "--model_max_length": "4096",
            "--tf32": "True",
            "--warmup_steps": "0.03",
            "--lr_scheduler_type": "cosine",
            "--tune_mm_mlp_adapter": "True" if name == "pretrain" else None,
            "--unfreeze_mm_vision_tower": "True" if name == "finetune" else None,
            "--group_by_modality_length": None if name == "pretrain" else "True",
            "--lora_enable": "True" if name == "finetune_lora" else None,
        }
        assert {flag: flags.get(flag) for flag in expected} == expected, name
    second, first = (flags_of(found[name]) for name in ("finetune", "pretrain"))
    assert second["--pretrain_mm_mlp_adapter"] == f"{first['--output_dir']}/mm_projector.bin"


def test_settings_are_variables_and_a_preset_of_another_family_is_refused(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", MACHINES["gpu8"].tools)
    own = {"MERGE_TYPE": "spatial", "PINPOINTS": "(1x1),...,(6x6)", "IMAGE_ASPECT": "anyres_max_9", "TOWER_LR": "1e-6"}
    expected = {
        "--mm_patch_merge_type": "spatial",
        "--image_grid_pinpoints": "(1x1),...,(6x6)",
        "--image_aspect_ratio": "anyres_max_9",
        "--mm_vision_tower_lr": "1e-6",
        "--model_max_length": "8192",
    }
    for name in ("finetune", "finetune_lora"):
        flags = flags_of(shell.command(script(name), MAX_LENGTH="8192", **own))
        assert {flag: flags.get(flag) for flag in expected} == expected
    status, _, said = shell.run(script("pretrain"), DRY_RUN="1", COMPRESSION="duet-192")
    assert status == 2 and "give one of its presets, such as next-640" in said


@pytest.mark.parametrize("name", RECIPES)
def test_every_variable_is_documented(name: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", MACHINES["gpu8"].tools)
    sources = [ROOT / script(name), ROOT / "scripts/lib/llava_next.sh", ROOT / "scripts/lib/recipe.sh"]
    used = {found for path in sources for found in re.findall(r"\$\{!?([A-Z][A-Z0-9_]+)[:}-]", path.read_text())}
    foreign = {"BASH_SOURCE"}
    if name != "finetune_lora":
        foreign |= {"PROJECTOR_LR", *(word for word in used if word.startswith("LORA_"))}
    status, said, _ = shell.run(script(name), "--help")
    assert status == 0 and said.startswith("LLaVA-NeXT, ")
    assert {word for word in used - foreign if not re.search(rf"\b{word}\b", said)} == set()


@pytest.mark.slow
def test_each_recipe_trains_from_what_the_one_before_left(tmp_path: Path) -> None:
    """The tower is trained at its own rate, and the model that comes out is an ordinary LLaVA-NeXT in transformers."""
    assets = write_assets(tmp_path)
    (assets / "next.yaml").write_text(
        "v2v: {dominant: 5, contextual: 2, cluster_width: 2}\nt2v: {layers: [2, 3], keep: [0.5, 0.25]}\n"
    )
    variables = {
        "LAUNCHER": "python",
        "DEVICE": "cpu",
        "PYTHON": sys.executable,
        "MODEL": str(assets / "lm"),
        "VISION_TOWER": str(assets / "tower"),
        "COMPRESSION": str(assets / "next.yaml"),
        "MAX_STEPS": "2",
        "IMAGE_FOLDER": str(assets / "images"),
        "GLOBAL_BATCH_SIZE": "4",
        "BATCH_SIZE": "2",
        "WORKERS": "0",
        "TF32": "False",
        "LORA_R": "4",
        "LEARNING_RATE": "1e-2",
        "TOWER_LR": "1e-3",
        "ADAPTER": str(assets / "pretrain/mm_projector.bin"),
    }
    for name in RECIPES:
        data = assets / ("captions.json" if name == "pretrain" else "chats.json")
        train(planned(script(name), DATA_PATH=str(data), OUTPUT_DIR=str(assets / name), **variables))
        assert len(losses(assets / name)) == 2 and weights(assets / name)
    before = torch.load(assets / "pretrain/mm_projector.bin", weights_only=True)
    assert "model.image_newline" in before
    model = open_model(str(assets / "finetune"), device="cpu").model
    config = json.loads((assets / "finetune/config.json").read_text())
    assert (config["image_aspect_ratio"], config["mm_patch_merge_type"]) == ("anyres", "spatial_unpad")
    assert config["image_grid_pinpoints"] == [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
    assert model.compression.v2v.dominant == 5
    changed = {name: tensor for name, tensor in model.state_dict().items() if "vision_tower" in name}
    started = open_model(str(assets / "finetune_lora"), str(assets / "lm"), device="cpu").model.state_dict()
    assert any(not torch.equal(tensor, started[name]) for name, tensor in changed.items())
    convert(str(assets / "finetune"), tmp_path / "hf", "hf")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")
    assert type(plain) is LlavaNextForConditionalGeneration
    assert torch.equal(plain.model.image_newline, model.model.image_newline)


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python tests/test_next_recipes.py --record")
    with tempfile.TemporaryDirectory() as made:
        RECORD.write_text(as_record(commands(Path(made))), encoding="utf-8")
