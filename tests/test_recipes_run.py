"""Every recipe trains for real, from what the recipes before it left; so does the whole reproduction."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import eval_files_choice
import eval_files_vqa
import pytest
from distributed import ENTRY, ROOT, environment, losses, weights
from tiny_llava import write_assets
from warm_python import warm_python

from llava.eval.run import PAPER
from llava.train.train import train

pytestmark = pytest.mark.slow
WRITERS = eval_files_vqa.WRITERS | eval_files_choice.WRITERS
STARTS = {  # what each recipe needs of those before it
    "pretrain": {},
    "finetune": {"ADAPTER": "pretrain/mm_projector.bin"},
    "finetune_lora": {"ADAPTER": "pretrain/mm_projector.bin", "LORA_R": "4"},
    "finetune_qlora": {"ADAPTER": "pretrain/mm_projector.bin", "LORA_R": "4"},
    "finetune_task": {"MODEL": "finetune"},
    "finetune_task_lora": {"MODEL": "finetune", "LORA_R": "4"},
}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


def tiny(assets: Path) -> dict[str, str]:
    """Variables that make a recipe small."""
    return {
        "LAUNCHER": "python",
        "DEVICE": "cpu",
        "PYTHON": sys.executable,
        "MODEL": str(assets / "lm"),
        "VISION_TOWER": str(assets / "tower"),
        "COMPRESSION": str(assets / "tiny.yaml"),
        "MAX_STEPS": "3",
        "IMAGE_FOLDER": str(assets / "images"),
        "GLOBAL_BATCH_SIZE": "8",
        "BATCH_SIZE": "4",
        "MAX_LENGTH": "256",
        "WORKERS": "0",
        "LEARNING_RATE": "1e-2",
        "REPORT_TO": "tensorboard",
        "DATA_PATH": str(assets / "chats.json"),
    }


def shell(script: str, *words: str, **variables: str) -> str:
    """Run a script of the project; it must succeed."""
    done = subprocess.run(
        ["bash", script, *words], cwd=ROOT, env=environment() | variables, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def planned(script: str, **variables: str) -> list[str]:
    """Flags of the training that a recipe would start; `train` takes them without an interpreter's start."""
    command = shlex.split(shell(script, DRY_RUN="1", **variables).splitlines()[-1])
    return command[command.index(ENTRY) + 1 :]


@pytest.mark.parametrize("name", STARTS)
def test_recipe_trains(name: str, assets: Path) -> None:
    """In the order of the table: each starts from files that an earlier one wrote. One runs as a user starts it."""
    variables = tiny(assets) | {"OUTPUT_DIR": str(assets / name)}
    variables |= {
        key: str(assets / value) if "/" in value or value in STARTS else value for key, value in STARTS[name].items()
    }
    if name == "pretrain":
        variables["DATA_PATH"] = str(assets / "captions.json")
    if name == "finetune":
        variables |= {"EVAL_DATA_PATH": str(assets / "chats.json"), "EVAL_STEPS": "2", "WANDB_MODE": "offline"}
        variables |= {"REPORT_TO": "wandb", "WANDB_DIR": str(assets)}
    if name == "finetune":
        shell(f"scripts/v1_5/{name}.sh", **variables)
    else:
        train(planned(f"scripts/v1_5/{name}.sh", **variables))
    assert len(losses(assets / name)) == 3 and weights(assets / name)
    if name == "finetune":
        assert list((assets / "wandb").glob("offline-run-*/*.wandb")), "wandb wrote its file without a network"
    else:
        assert list((assets / name).rglob("events.out.tfevents*")), "TensorBoard's file is there"
    assert ("lora" in name) == (assets / name / "adapter_model.safetensors").is_file()


def test_reproduction_goes_through_and_does_nothing_twice(assets: Path, tmp_path: Path) -> None:
    """Data check, both phases, and the table beside the paper's row; a second start only evaluates."""
    variables = tiny(assets) | {"OUTPUT": str(tmp_path), "ACCUMULATION": "1", "COMPRESSION": ""}
    variables["PYTHON"] = warm_python()
    del variables["DATA_PATH"], variables["IMAGE_FOLDER"], variables["GLOBAL_BATCH_SIZE"]
    for phase, data in (("PRETRAIN", "captions.json"), ("FINETUNE", "chats.json")):
        variables |= {f"{phase}_DATA_PATH": str(assets / data), f"{phase}_IMAGE_FOLDER": str(assets / "images")}
        variables[f"{phase}_MAX_LENGTH"] = "2048"
    said = shell("scripts/reproduce.sh", "none", EVALUATE="0", **variables)
    assert "POPE" in said and "85.9" in said, "the paper's uncompressed row"
    for name in PAPER:
        WRITERS[name](tmp_path / "eval")
    made = {"EVAL_FOLDER": str(tmp_path / "eval"), "CHECK": "0"}  # complete, but a thousandth of the published files
    again = shell("scripts/reproduce.sh", "none", **made, **variables)
    assert again.count("done already") == 2, "the phases"
    scores = json.loads((tmp_path / "results.json").read_text())
    assert set(scores) == {"POPE", "SQA-I", "VQA-T", "MME", "GQA"}
    (measured,) = (line.split() for line in again.splitlines() if line.startswith("measured"))
    assert "-" not in measured and len(measured) == 7
    assert sorted(os.listdir(tmp_path)), "everything goes below OUTPUT"
