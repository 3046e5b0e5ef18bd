"""The documents on training say what the code does: generated parts are fresh, and what they name exists."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser

from llava.data.mixture_files import read_mixture
from llava.data.video_torchcodec import VARIABLE as VIDEO_DECODER
from llava.doctor.document import DOCUMENTS, renewed
from llava.train.arguments import RENAMED, WITHOUT_EFFECT, DataArguments, ModelArguments, TrainingArguments

ROOT = Path(__file__).resolve().parents[1]
TEXT = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
# Modules that `python -m` runs, and where their `main` is.
PROGRAMS = {
    "llava.doctor": "llava.doctor.__main__",
    "llava.data.check": "llava.data.check.command",
    "llava.bench.loader": "llava.bench.loader",
}
WRITTEN = re.sub(r"<!-- generated: \w+ -->.*?<!-- end -->", "", TEXT, flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    """The shell commands, one a line, without comments."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_generated_parts_are_fresh() -> None:
    for document, parts in DOCUMENTS.items():
        text = document.read_text(encoding="utf-8")
        assert renewed(text, parts) == text, "run python -m llava.doctor.document"
        assert "<function" not in text
        with pytest.raises(ValueError, match="must have"):
            renewed(text.replace(f"generated: {next(iter(parts))}", "generated: nothing"), parts)


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
    scripts = [path for folder in ("", "v1_5", "lib") for path in (ROOT / "scripts" / folder).glob("*.sh")]
    documented = "\n".join(script.read_text(encoding="utf-8") for script in scripts)
    for name in re.findall(r"`([A-Z][A-Z_]{3,})(?:=[^`]*)?`", WRITTEN):
        assert name in documented or name.startswith("WANDB") or name == VIDEO_DECODER, name


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


def program(command: str) -> Callable[[list[str]], Any]:
    """The `main` of a documented `python SCRIPT.py` or `python -m MODULE`; imported here, for a new process is slow."""
    words = command.split()
    if words[1] == "-m":
        return importlib.import_module(PROGRAMS[words[2]]).main
    spec = importlib.util.spec_from_file_location(Path(words[1]).stem, ROOT / words[1])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("python ")])
def test_every_flag_of_the_other_programs_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        program(command)(["--help"])
    known = re.findall(r"--[\w-]+", capsys.readouterr().out)
    flags = [word for word in command.split() if word.startswith("--")]
    assert end.value.code == 0 and flags and [flag for flag in flags if flag not in known] == []


def said_by_the_code() -> str:
    """Every text in the sources of llava and of the launcher, with … for what is filled in."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts" / "lib").glob("*.sh")]
    for path in (ROOT / "llava").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_message_that_is_explained_is_one_that_the_code_says() -> None:
    of_others = {"Error building extension", "operator torchvision::nms does not exist"}
    rows = WRITTEN.split("## 9.")[1].split("\n## ")[0].splitlines()
    quoted = {text for row in rows if row.startswith("| ") for text in re.findall(r"`([^`]+)`", row.split("|")[1])}
    said = said_by_the_code()
    assert len(quoted) > 10
    for text in quoted - of_others:
        assert re.search(".+".join(map(re.escape, text.strip("… ").split(" … "))), said), text


def test_the_table_of_recipes_is_what_eight_gpus_run() -> None:
    recorded = (ROOT / "tests" / "recipes" / "gpu8.txt").read_text(encoding="utf-8")
    commands_of = dict(re.findall(r"^# (\w+)\n(.+)$", recorded, re.MULTILINE))
    rows = re.findall(r"^\| `(\w+)\.sh` \| .*? \| (\d+) \| (\S+?)(?:, projector (\S+))? \| (\d) \|", TEXT, re.MULTILINE)
    assert {name for name, *_ in rows} == set(commands_of)
    for name, batch, rate, projector_rate, stage in rows:
        words = shlex.split(commands_of[name])
        flags = {flag: value for flag, value in zip(words, words[1:], strict=False) if flag.startswith("--")}
        samples = 8 * int(flags["--per_device_train_batch_size"]) * int(flags["--gradient_accumulation_steps"])
        assert samples == int(batch), name
        assert (flags["--learning_rate"], flags.get("--mm_projector_lr", "")) == (rate, projector_rate), name
        assert flags["--deepspeed"] == f"./scripts/zero{stage}.json", name


def test_the_batch_script_of_slurm_saves_and_queues_again(tmp_path: Path) -> None:
    """With a recipe that ends with status 75 once `scancel` was called, as a trainer does that was told to stop."""
    (script,) = [text for text in blocks("text") if text.startswith("#!")]
    programs = {
        "scripts/v1_5/finetune.sh": "touch begun; until [ -e told ]; do sleep 0.1; done; sleep 0.5; exit 75",
        "bin/scancel": 'echo "$*" > told',
        "bin/scontrol": 'echo "$*" > queued',
    }
    for name, body in programs.items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"#!/usr/bin/env bash\n{body}\n")
        target.chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    variables = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=variables)
    until = time.monotonic() + 200
    while not (tmp_path / "begun").exists() and time.monotonic() < until:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    job.wait(timeout=200)
    assert (tmp_path / "told").read_text() == "--signal=TERM 4711\n"
    assert (tmp_path / "queued").read_text() == "requeue 4711\n"
