"""Asked for help, no script starts anything; and none plans a LLaVA-1.5 under the budget of another family."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "scripts").rglob("*.sh") if path.parent.name != "lib")
CONFIGS = ROOT / "configs/compression"
STARTED = ("python", "python3", "python3.11", "torchrun", "deepspeed", "srun", "pip", "shellcheck")


def shell(tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script where whatever it might start only leaves its name."""
    stubs = tmp_path / "stubs"
    stubs.mkdir(exist_ok=True)
    for name in STARTED:
        (stubs / name).write_text(f'#!/bin/sh\necho "$0 $*" >>{tmp_path}/started\nexit 1\n')
        (stubs / name).chmod(0o755)
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    own = {"PATH": f"{stubs}:/usr/bin:/bin", "VENV": str(tmp_path / "venv"), "OUTPUT": str(tmp_path / "out")}
    return subprocess.run(
        ["bash", str(ROOT / words[0]), *words[1:]],
        cwd=tmp_path,
        env={**kept, **own, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_help(script: str, tmp_path: Path):
    first = next(line for line in (ROOT / script).read_text().splitlines() if line.startswith("# ")).removeprefix("# ")
    if script == "scripts/finetune_qlora.sh":  # LLaVA's place for another script
        first = (ROOT / "scripts/v1_5/finetune_qlora.sh").read_text().splitlines()[1].removeprefix("# ")
    for words in (["--help"], ["-h"], ["something", "--help"]):
        own = {"PYTHON": sys.executable} if script == "scripts/gpu_check.sh" else {}  # its program prints the help
        said = shell(tmp_path, script, *words, **own)
        assert said.returncode == 0, said.stderr
        assert said.stdout.startswith((first, "usage: ")) and not said.stderr
    assert not (tmp_path / "started").exists() and not (tmp_path / "out").exists() and not (tmp_path / "venv").exists()


def test_the_released_scripts_take_no_flag_for_a_name(tmp_path: Path):
    for name, count in (("finetune", 9), ("pretrain", 8)):
        script = f"scripts/llava/v1_5/pdrop_train/{name}.sh"
        said = shell(tmp_path, script, "--bits", "4", DRY_RUN="1")
        assert said.returncode == 2 and f"'--bits' stands among the first {count} arguments" in said.stderr
        said = shell(tmp_path, script, *[""] * count, "--bits", "4", DRY_RUN="1", DEVICE="cpu")
        assert said.returncode == 0 and said.stdout.rstrip().endswith("--bits 4"), said.stderr


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "configs/compression").glob("*.yaml")))
def test_recipes_and_reproducing_take_presets_of_their_family_alone(preset: str, tmp_path: Path):
    made_for = (yaml.safe_load((ROOT / f"configs/compression/{preset}.yaml").read_text()) or {}).get("for")
    families = [] if made_for is None else made_for["family"]
    families = [families] if isinstance(families, str) else families
    fits = made_for is None or "llava-1.5" in families
    said = shell(tmp_path, "scripts/v1_5/finetune.sh", DRY_RUN="1", DEVICE="cpu", COMPRESSION=preset)
    if fits:
        assert said.returncode == 0 and f"--compression {preset}" in said.stdout, said.stderr
    else:
        assert said.returncode == 2 and not said.stdout
        made = ", ".join(families)
        assert f"the compression {preset} is made for {made}, but this trains a LLaVA-1.5" in said.stderr
    if preset not in ("none", "next-640", "pyramiddrop"):
        return  # both read the file through one function
    if not fits:
        named = shell(tmp_path, "scripts/v1_5/pretrain.sh", DRY_RUN="1", COMPRESSION=f"{CONFIGS}/{preset}.yaml")
        assert named.returncode == 2 and f"made for {made}, but this trains" in named.stderr
    for family in ("llava-1.5", "llava-next", "video-llava", "qwen2.5-vl", "qwen3-vl", "llava-onevision"):
        said = shell(tmp_path, "scripts/reproduce.sh", preset, DRY_RUN="1", DEVICE="cpu", TRAIN="0", FAMILY=family)
        if made_for is None or family in families:
            assert said.returncode == 0 and f"--compression {preset}" in said.stdout, said.stderr
        else:
            assert said.returncode == 2 and not said.stdout and f"but FAMILY is '{family}'" in said.stderr


def test_a_budget_of_another_depth_is_refused_where_the_depth_is_known(tmp_path: Path):
    """The recipes' own default does not fit a 13B model, whose training would refuse it minutes later."""
    deep, shallow = tmp_path / "deep", tmp_path / "shallow"
    for folder, layers in ((deep, 40), (shallow, 32)):
        folder.mkdir()
        config = {"mm_vision_config": {"num_hidden_layers": 24}, "num_hidden_layers": layers}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    for recipe in ("pretrain", "finetune", "finetune_lora"):
        for model in ("lmsys/vicuna-13b-v1.5", "liuhaotian/llava-v1.5-13B", str(deep)):
            said = shell(tmp_path, f"scripts/v1_5/{recipe}.sh", DRY_RUN="1", DEVICE="cpu", MODEL=model)
            assert said.returncode == 2 and not said.stdout
            assert f"duet-192 is made for 32 decoder layers, but {model} has 40" in said.stderr
            assert "COMPRESSION is 'duet-192' (its default): " in said.stderr
            if recipe != "finetune":
                break
    for model in (str(shallow), "lmsys/vicuna-7b-v1.5", "someone/else"):
        assert shell(tmp_path, "scripts/v1_5/finetune.sh", DRY_RUN="1", DEVICE="cpu", MODEL=model).returncode == 0
    for words, variables in (([], {"COMPRESSION": "visionzip-64"}), (["--compression", "none"], {})):
        own = {"DRY_RUN": "1", "DEVICE": "cpu", "MODEL": str(deep), **variables}
        assert shell(tmp_path, "scripts/v1_5/finetune.sh", *words, **own).returncode == 0
    said = shell(tmp_path, "scripts/reproduce.sh", "duet-64", DRY_RUN="1", DEVICE="cpu", MODEL=str(deep))
    assert said.returncode == 2 and "has 40" in said.stderr and not said.stdout


def test_a_dry_run_prints_every_step_and_starts_none(tmp_path: Path):
    out = str(tmp_path / "out")
    for words, printed in (
        (
            ["scripts/quickstart.sh"],
            ["-m playground.world", "v1_5/pretrain.sh", "v1_5/finetune.sh", "quickstart.report"],
        ),
        (["scripts/quickstart.sh", "--study"], [f"-m playground.study --out {out}"]),
        (["scripts/quickstart.sh", "--video-study"], [f"-m playground.study.video --out {out}"]),
        (["scripts/test.sh"], ["-m ruff check", "-m mypy", "shellcheck -x", "-m pytest"]),
        (["scripts/test.sh", "--quick", "-x"], ["-m mypy", "tests/test_verify.py -x"]),
        (["scripts/test.sh", "tests/test_v2v.py::test_x", "-x"], ["-m pytest tests/test_v2v.py::test_x -x"]),
    ):
        own = {
            "QUICKSTART_OUTPUT": out,
            "STUDY_OUTPUT": out,
            "VIDEO_STUDY_OUTPUT": out,
            "QUICKSTART_FRESH": "1",
            "DRY_RUN": "1",
        }
        said = shell(tmp_path, *words, **own)
        assert said.returncode == 0 and not said.stderr and all(text in said.stdout for text in printed), said
    assert [path.name for path in tmp_path.iterdir()] == ["stubs"]


def test_the_quick_checks_name_files_that_are_there(tmp_path: Path):
    said = shell(tmp_path, "scripts/test.sh", "--quick", DRY_RUN="1").stdout.split()
    files = [word for word in said if word.startswith("tests/")]
    assert len(files) > 10 and [file for file in files if not (ROOT / file).is_file()] == []


def test_the_checks_take_no_word_that_pytest_could_not(tmp_path: Path):
    for word in ("help", "tests/test_nothing.py", "test_v2v.py::test_x"):
        said = shell(tmp_path, "scripts/test.sh", word)
        assert said.returncode == 2 and f"'{word}' is neither an option of pytest nor a path" in said.stderr
    assert not (tmp_path / "started").exists() and not (tmp_path / "venv").exists()
