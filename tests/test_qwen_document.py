"""docs/qwen2-5-vl.md: every command runs on a tiny model, and what it says of presets and places is so."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import eval_files_vqa
import pytest
from distributed import ENTRY
from fake_machine import MACHINES, ROOT, Shell
from PIL import Image
from tiny_qwen import write_qwen
from warm_python import run_program

from llava.compression.config import CompressionConfig
from llava.cost import overview
from llava.data.check import command as check
from llava.data.records import read_records
from llava.eval import run as evaluate
from llava.eval import run_llava
from llava.serve import cli
from llava.train.arguments import parse_arguments
from llava.train.train import train

TEXT = (ROOT / "docs/qwen2-5-vl.md").read_text(encoding="utf-8")
RELEASED = "Qwen/Qwen2.5-VL-7B-Instruct"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


PROGRAMS: dict[str, Callable[[list[str]], int | None]] = {
    "llava.data.check": check.main,
    "llava.compression.schedule": overview.main,
    "llava.eval.run_llava": run_llava.main,
    "llava.serve.cli": cli.main,
    "llava.eval.run": evaluate.main,
}
COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands find what they name."""
    folder = tmp_path_factory.mktemp("page")
    ends = {"eos_token_id": list(range(300))}  # answers of a token or two are long enough
    (write_qwen(folder / RELEASED, layers=28) / "generation_config.json").write_text(json.dumps(ends))
    (folder / "images").mkdir()
    for name in ("red.png", "images/red.png", "images/a.png", "images/b.png"):
        Image.new("RGB", (40, 30), (200, 0, 0)).save(folder / name)
    records = [record for record in json.loads(blocks("json")[0]) if "video" not in record]
    (folder / "data.json").write_text(json.dumps(records * 4))
    eval_files_vqa.write_textvqa(folder / "eval")
    return folder


def planned(place: Path, shell: Shell, number: int) -> list[str]:
    """Flags of the training that a command of the page starts, on a CPU and for a step."""
    words = shlex.split([line for line in COMMANDS if "scripts/qwen2_5_vl" in line][number])
    script = words.index("bash") + 1
    variables = dict(word.split("=", 1) for word in words[: script - 1])
    more = {"DEVICE": "cpu", "LAUNCHER": "python", "MAX_STEPS": "1", "GLOBAL_BATCH_SIZE": "2", "WORKERS": "0"}
    command = shell.command(words[script], *words[script + 1 :], **variables | more)
    flags = command[command.index(ENTRY) + 1 :]
    if "--deepspeed" in flags:  # takes a launcher of its own
        first = flags.index("--deepspeed")
        del flags[first : first + 2]
    return flags


def test_the_commands_train_ask_and_evaluate(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(tmp_path / "bin", MACHINES["cpu"].tools)
    monkeypatch.chdir(place)
    for number in (0, 1):
        flags = planned(place, shell, number)
        folder = train(flags)
        assert (folder / ("model.safetensors", "adapter_model.safetensors")[number]).is_file()
    quantised = parse_arguments(planned(place, shell, 2))
    assert quantised[2].bits == 4 and quantised[2].lora_enable
    modules = []
    for words in map(shlex.split, COMMANDS):
        if words[:2] != ["python", "-m"]:
            continue
        modules.append(words[2])
        monkeypatch.setattr("sys.stdin", io.StringIO("Which colour is it?\n"))
        more = ["--device", "cpu"] if "--model-path" in words else []
        more += ["--workers", "0"] if words[2] == "llava.data.check" else []
        assert PROGRAMS[words[2]]([*words[3:], *more]) in (0, None), words
    assert modules == list(PROGRAMS)
    said = capsys.readouterr().out
    assert "qwen-640" in said and "VQA-T" in said
    done = run_program(["-c", blocks("python")[0]], cwd=place, env={"OMP_NUM_THREADS": "1", "PATH": ""})
    assert done.returncode == 0 and done.stdout.startswith("["), done.stderr


def test_the_reproduction_plans_the_released_model(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", MACHINES["cpu"].tools)
    (line,) = [line for line in COMMANDS if "reproduce.sh" in line]
    assert line == "TRAIN=0 bash scripts/reproduce.sh qwen-640"
    status, out, err = shell.run("scripts/reproduce.sh", "qwen-640", TRAIN="0", DRY_RUN="1", DEVICE="cpu")
    assert status == 0, err
    assert f"--model-path {RELEASED}" in out and "--table table-2" in out and "--compression qwen-640" in out


def test_the_table_of_presets_is_that_of_the_files() -> None:
    caps = [
        f"{config.v2v.dominant} + {config.v2v.contextual}"
        for config in map(CompressionConfig.from_preset, ("qwen-640", "qwen-320", "qwen-160"))
    ]
    assert f"at most {', '.join(caps)}" in TEXT
    config = CompressionConfig.from_preset("qwen-share-70")
    assert config.t2v is not None and (config.t2v.layers, config.t2v.keep) == ((14, 21), (0.5, 0.25))
    for name in re.findall(r"`(tests/[\w/.]+)`", TEXT):
        assert (ROOT / name).is_file(), name


def test_the_records_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(blocks("json")[0])
    assert [record.id for record in read_records(tmp_path / "data.json")] == ["1", "2"]
