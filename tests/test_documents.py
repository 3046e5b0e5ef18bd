"""docs/training.md says what the code does: generated parts are fresh, and what it names exists."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import HfArgumentParser

from llava.data.mixture import read_mixture
from llava.doctor.document import DOCUMENT, renewed
from llava.train.arguments import RENAMED, WITHOUT_EFFECT, DataArguments, ModelArguments, TrainingArguments

ROOT = Path(__file__).resolve().parents[1]
TEXT = DOCUMENT.read_text(encoding="utf-8")
WRITTEN = re.sub(r"<!-- generated: \w+ -->.*?<!-- end -->", "", TEXT, flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    """The shell commands, one a line, without comments."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_generated_parts_are_fresh() -> None:
    assert renewed(TEXT) == TEXT, "run python -m llava.doctor.document"
    assert "<function" not in TEXT
    with pytest.raises(ValueError, match="must have"):
        renewed(TEXT.replace("generated: memory", "generated: nothing"))


def test_every_path_and_module_exists() -> None:
    for path in re.findall(r"`((?:llava|scripts|configs|docs|tests)/[\w/.]+)`", WRITTEN):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m (llava[\w.]*\w)", WRITTEN):
        assert importlib.util.find_spec(module), module


def test_every_flag_exists() -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    known = {option for action in parser._actions for option in action.option_strings}
    known |= {f"--{name}" for name in (*RENAMED, *WITHOUT_EFFECT)}
    trainer = re.findall(r"`(--[a-z]\w*_\w+)", TEXT)
    assert trainer and [flag for flag in trainer if flag not in known] == []


def test_every_variable_is_documented_by_the_recipes() -> None:
    scripts = [*(ROOT / "scripts/v1_5").glob("*.sh"), *(ROOT / "scripts/lib").glob("*.sh")]
    documented = "\n".join(script.read_text(encoding="utf-8") for script in scripts)
    for name in re.findall(r"`([A-Z][A-Z_]{3,})(?:=[^`]*)?`", WRITTEN):
        assert name in documented or name.startswith("WANDB"), name


@pytest.mark.parametrize("command", [line for line in commands() if "scripts/v1_5" in line])
def test_every_recipe_command_makes_a_command(command: str, tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_text("a slots=8\nb slots=8\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = command.replace("hosts.txt", str(tmp_path / "hosts.txt"))
    variables = os.environ | {"DRY_RUN": "1", "PATH": path, "DEVICE": "cpu"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and "train_mem.py" in done.stdout, done.stderr


def test_the_mixture_is_one(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    for source in yaml.safe_load(text)["sources"]:
        (tmp_path / source["path"]).write_text("[]")
    (tmp_path / "mix.yaml").write_text(text)
    sources, seed = read_mixture(tmp_path / "mix.yaml")
    assert [source.weight for source in sources] == [1.0, 2.0, 0.1] and seed == 0


def test_every_python_script_answers_to_help() -> None:
    for line in commands():
        words = line.split()
        if words[0] == "python" and words[1].endswith(".py"):
            done = subprocess.run([sys.executable, words[1], "--help"], cwd=ROOT, capture_output=True, text=True)
            flags = [word for word in words if word.startswith("--")]
            assert done.returncode == 0 and all(flag in done.stdout for flag in flags), line
