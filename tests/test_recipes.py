"""The recipes: what they run on every kind of machine, with which settings.

The command lines are kept in `tests/recipes`; `python tests/test_recipes.py --record` writes them anew.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from fake_machine import MACHINES, ROOT, Machine, Shell, flags_of, recipe

RECORDS = ROOT / "tests" / "recipes"
RECIPES = ("pretrain", "finetune", "finetune_lora", "finetune_qlora", "finetune_task", "finetune_task_lora")


def dry_runs(machine: Machine, folder: Path) -> str:
    """What is recorded for a machine: each recipe and its command."""
    shell = Shell(folder, machine.tools)
    lines = [shlex.join(shell.command(recipe(name), **machine.variables)) for name in RECIPES]
    return "".join(f"# {name}\n{line}\n" for name, line in zip(RECIPES, lines, strict=True))


@pytest.fixture
def gpu8(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "bin", MACHINES["gpu8"].tools)


@pytest.mark.parametrize("name", MACHINES)
def test_commands_are_those_on_record(name: str, tmp_path: Path) -> None:
    recorded = (RECORDS / f"{name}.txt").read_text(encoding="utf-8")
    assert dry_runs(MACHINES[name], tmp_path / "bin") == recorded


# LLaVA-1.5's settings, as far as they differ between the recipes: global batch, learning rate, ZeRO stage, starting
# point. Only the checkpoints are ours: LLaVA writes one every 24000 or 50000 steps, which no run reaches.
PUBLISHED = {
    "pretrain": (256, "1e-3", 2, "lmsys/vicuna-7b-v1.5"),
    "finetune": (128, "2e-5", 3, "lmsys/vicuna-7b-v1.5"),
    "finetune_lora": (128, "2e-4", 3, "lmsys/vicuna-7b-v1.5"),
    "finetune_qlora": (128, "2e-4", 2, "lmsys/vicuna-7b-v1.5"),
    "finetune_task": (128, "2e-5", 3, "liuhaotian/llava-v1.5-7b"),
    "finetune_task_lora": (128, "2e-4", 3, "liuhaotian/llava-v1.5-7b"),
}
EVERYWHERE = {
    "--compression": "duet-192",
    "--vision_tower": "openai/clip-vit-large-patch14-336",
    "--warmup_steps": "0.03",
    "--mm_projector_type": "mlp2x_gelu",
    "--mm_vision_select_layer": "-2",
    "--mm_use_im_start_end": "False",
    "--mm_use_im_patch_token": "False",
    "--num_train_epochs": "1",
    "--weight_decay": "0.",
    "--bf16": "True",
    "--lr_scheduler_type": "cosine",
    "--model_max_length": "2048",
    "--activation_checkpointing": "True",
    "--tf32": "False",
    "--gradient_accumulation_steps": "1",
    "--report_to": "none",
    "--eval_strategy": "no",
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_published_settings_on_eight_gpus(name: str, gpu8: Shell) -> None:
    flags = flags_of(gpu8.command(recipe(name)))
    batch, rate, stage, model = PUBLISHED[name]
    expected = {
        **EVERYWHERE,
        "--per_device_train_batch_size": str(batch // 8),
        "--learning_rate": rate,
        "--save_steps": "500",
        "--deepspeed": f"./scripts/zero{stage}.json",
        "--model_name_or_path": model,
        "--version": "plain" if name == "pretrain" else "v1",
        "--image_aspect_ratio": "square" if name == "pretrain" else "pad",
    }
    assert {flag: flags.get(flag) for flag in expected} == expected
    assert flags.get("--tune_mm_mlp_adapter") == ("True" if name == "pretrain" else None)
    assert flags.get("--group_by_modality_length") == (None if name == "pretrain" else "True")
    assert ("--pretrain_mm_mlp_adapter" in flags) == (name in ("finetune", "finetune_lora", "finetune_qlora"))
    lora = {"--lora_enable": "True", "--lora_r": "128", "--lora_alpha": "256", "--mm_projector_lr": "2e-5"}
    assert {flag: flags[flag] for flag in lora if flag in flags} == (lora if "lora" in name else {})
    assert flags.get("--bits") == ("4" if name == "finetune_qlora" else None)


def test_the_second_phase_finds_what_the_first_one_leaves(gpu8: Shell) -> None:
    for budget in ("duet-64", "/budgets/my own.yaml", ""):
        first = flags_of(gpu8.command(recipe("pretrain"), COMPRESSION=budget))
        second = flags_of(gpu8.command(recipe("finetune"), COMPRESSION=budget))
        assert second["--pretrain_mm_mlp_adapter"] == f"{first['--output_dir']}/mm_projector.bin"
        assert first.get("--compression", "") == budget
        assert first["--run_name"] == Path(first["--output_dir"]).name


def test_every_setting_is_an_environment_variable_and_the_command_line_wins(gpu8: Shell) -> None:
    variables = {
        "MODEL": "/models/my model",
        "EVAL_DATA_PATH": "held out.json",
        "EVAL_STEPS": "20",
        "ATTENTION": "sdpa",
        "RUN_NAME": "trial 1",
        "REPORT_TO": "wandb",
        "ON_BAD_SAMPLE": "skip",
        "SEED": "7",
        "FP16": "True",
        "WORKERS": "3",
        "PACKING": "on",
        "MAX_TOKENS_PER_DEVICE": "9000",
    }
    flags = flags_of(gpu8.command(recipe("finetune"), "--seed", "8", "--freeze_backbone", "True", **variables))
    expected = {
        "--model_name_or_path": "/models/my model",
        "--eval_data_path": "held out.json",
        "--eval_strategy": "steps",
        "--eval_steps": "20",
        "--attn_implementation": "sdpa",
        "--run_name": "trial 1",
        "--report_to": "wandb",
        "--on_bad_sample": "skip",
        "--seed": "8",
        "--fp16": "True",
        "--bf16": "False",
        "--dataloader_num_workers": "3",
        "--packing": "on",
        "--max_tokens_per_device": "9000",
        "--freeze_backbone": "True",
    }
    assert {flag: flags[flag] for flag in expected} == expected


def test_a_llava_that_records_its_template_goes_on_in_it(gpu8: Shell, tmp_path: Path) -> None:
    for folder, recorded in (("my llava", "chatml"), ("projector", "plain"), ("older", None)):
        (tmp_path / folder).mkdir()
        config = {"model_type": "llava_llama"} | ({"conversation_template": recorded} if recorded else {})
        (tmp_path / folder / "config.json").write_text(json.dumps(config, indent=2))
        for name in RECIPES:
            usual = "plain" if name == "pretrain" else "v1"
            for words, variables in (
                ((), {"MODEL": str(tmp_path / folder)}),
                (("--lora_weight_path", str(tmp_path / folder)), {}),
                (("--model_name_or_path", str(tmp_path / folder)), {}),
            ):
                if variables or name == "finetune_lora":
                    given = flags_of(gpu8.command(recipe(name), *words, **variables))
                    expected = None if recorded == "chatml" and name != "pretrain" else usual
                    assert given.get("--version") == expected, (name, words)
    own = gpu8.command(recipe("finetune"), MODEL=str(tmp_path / "my llava"), VERSION="v1")
    assert flags_of(own)["--version"] == "v1"
    assert "--version" not in gpu8.command(recipe("finetune"), f"--model_name_or_path={tmp_path / 'my llava'}")


@pytest.mark.parametrize("name", RECIPES)
def test_every_variable_is_documented(name: str, gpu8: Shell) -> None:
    sources = [
        ROOT / recipe(name),
        *(ROOT / "scripts" / "lib" / f"{part}.sh" for part in ("recipe", "launch", "devices")),
    ]
    used = {found for path in sources for found in re.findall(r"\$\{!?([A-Z][A-Z0-9_]+)[:}-]", path.read_text())}
    foreign = {"BASH_SOURCE", *(word for word in used if word.startswith("SLURM_"))}
    if "lora" not in name:
        foreign |= {"PROJECTOR_LR", *(word for word in used if word.startswith("LORA_"))}
    status, out, _ = gpu8.run(recipe(name), "--help", cwd=gpu8.folder)
    assert status == 0 and out.startswith(("Pre-training", "Fine-tuning"))
    assert {word for word in used - foreign if not re.search(rf"\b{word}\b", out)} == set()


@pytest.mark.parametrize("budget", ["finetune", "pretrain"])
def test_released_positional_arguments_reach_the_same_recipe(budget: str, gpu8: Shell) -> None:
    wrapper = f"scripts/llava/v1_5/pdrop_train/{budget}.sh"
    adapter = ["/a b/mm_projector.bin"] if budget == "finetune" else []
    own = ["name", "/out put", "[8,16]", "[0.4,0.1]", *adapter, "170", "35", "5", "none"]
    variables = {"RUN_NAME": "name", "OUTPUT_DIR": "/out put", "REPORT_TO": "none"}
    if adapter:
        variables["ADAPTER"] = adapter[0]
    named = {"--layer_list": "[8,16]", "--image_token_ratio_list": "[0.4,0.1]"}
    named |= {"--dominant_num": "170", "--context_num": "35", "--cluster_width": "5"}
    direct = gpu8.command(recipe(budget), *(word for pair in named.items() for word in pair), **variables)
    assert gpu8.command(wrapper, *own, cwd=gpu8.folder) == direct
    released = flags_of(gpu8.command(wrapper))
    expected = {"--layer_list": "[16,24]", "--image_token_ratio_list": "[0.5,0.0]", "--dominant_num": "300"}
    expected |= {"--context_num": "7", "--cluster_width": "4", "--report_to": "wandb"}
    assert {flag: released[flag] for flag in expected} == expected


def test_qlora_stands_in_llavas_place_too(gpu8: Shell) -> None:
    ours = gpu8.command(recipe("finetune_qlora"), "--seed", "1")
    assert gpu8.command("scripts/finetune_qlora.sh", "--seed", "1", cwd=gpu8.folder) == ours


def test_scripts_run_from_anywhere_and_in_a_path_with_spaces(tmp_path: Path) -> None:
    project = tmp_path / "my project"
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, project / name, symlinks=True)
    shell = Shell(tmp_path / "a bin", MACHINES["gpu8"].tools, root=project)
    recorded = dict(re.findall(r"# (\w+)\n(.*)\n", (RECORDS / "gpu8.txt").read_text()))
    for name in RECIPES:
        assert shlex.join(shell.command(recipe(name), cwd=tmp_path)) == recorded[name]


def test_zero_settings_are_one_file_in_both_places() -> None:
    for name in ("zero2", "zero3", "zero3_offload"):
        link, real = ROOT / "scripts" / f"{name}.json", ROOT / "configs" / "deepspeed" / f"{name}.json"
        assert link.is_symlink() and not link.readlink().is_absolute() and link.resolve() == real
        settings = json.loads(real.read_text())
        assert settings["zero_optimization"]["stage"] == int(name[4])
        assert settings["bf16"]["enabled"] == settings["fp16"]["enabled"] == "auto"
        assert not {"optimizer", "scheduler"} & set(settings)
        offloads = "offload_optimizer" in settings["zero_optimization"]
        assert offloads == ("offload_param" in settings["zero_optimization"]) == name.endswith("offload")
        assert settings.get("zero_force_ds_cpu_optimizer", True) is not offloads


def record() -> None:
    """Write the command lines of every machine."""
    with tempfile.TemporaryDirectory() as folder:
        for name, machine in MACHINES.items():
            (RECORDS / f"{name}.txt").write_text(dry_runs(machine, Path(folder) / name), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python tests/test_recipes.py --record")
    record()
