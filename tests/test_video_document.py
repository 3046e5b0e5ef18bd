"""docs/video-llava.md: its commands and its script run on a tiny model, and its figures are those of the schedule."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from eval_files_judged import WRITERS
from fake_machine import MACHINES, Shell
from tiny_video import write_training, write_video, write_video_llava

from llava.checkpoints import conversion
from llava.compression import schedule
from llava.compression.config import CompressionConfig
from llava.data.check import command as data_check
from llava.eval import run as evaluation
from llava.eval import run_llava
from llava.serve import cli

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/video-llava.md").read_text(encoding="utf-8")
NAME = "LanguageBind/Video-LLaVA-7B"
BUDGET = "v2v: {dominant: 4, contextual: 2, cluster_width: 2}\nt2v: {layers: [1, 2], keep: [0.5, 0.25]}\n"
PROGRAMS = {
    "llava.eval.run_llava": run_llava.main,
    "llava.serve.cli": cli.main,
    "llava.model.convert": conversion.main,
    "llava.compression.schedule": schedule.main,
    "llava.data.check": data_check.main,
    "llava.eval.run": evaluation.main,
}


def blocks(language: str) -> str:
    return "".join(re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL))


COMMANDS = blocks("bash").replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every name of the document stands for something tiny."""
    folder = tmp_path_factory.mktemp("place")
    write_video_llava(folder / NAME, layers=4, conversation_template="v1")
    write_video_llava(folder / "untimed", timed=False, layers=4)
    conversion.convert(str(folder / "untimed"), folder / f"{NAME}-hf", "hf")
    write_video(folder / "dog.mp4")
    write_training(folder / "training")
    data = folder / "playground/data/videollava"
    data.mkdir(parents=True)
    for name in ("images", "videos"):
        shutil.copytree(folder / "training" / name, data, dirs_exist_ok=True)
    shutil.copy(folder / "training/mixed.json", data / "videochatgpt_tune_.json")
    for name in ("msvd", "msrvtt", "tgif", "activitynet"):
        WRITERS[name](folder / "playground/data/eval")
    for name in ("video-960", "video-136"):
        (folder / f"{name}.yaml").write_text(BUDGET)
    return folder


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python")])
def test_every_program_does_what_the_document_has_it_do(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it red?\n"))
    words = [re.sub(r"^(video-\d+)$", r"\1.yaml", word) for word in shlex.split(command)]
    more = {
        "llava.eval.run": ["--max-new-tokens", "3", "--device", "cpu"],
        "llava.eval.run_llava": ["--max-new-tokens", "3", "--device", "cpu"],
        "llava.serve.cli": ["--max-new-tokens", "3", "--device", "cpu"],
        "llava.data.check": ["--workers", "0"],
    }
    if words[2] == "llava.data.check":  # of a budget for the real model's layers
        words = [word.removesuffix(".yaml") if word.startswith("video-") else word for word in words]
    try:
        status = PROGRAMS[words[2]]([*words[3:], *more.get(words[2], [])])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    assert status in (0, None), said
    assert said.out.strip(), said.err
    if words[2] == "llava.model.convert":
        config = json.loads(Path("checkpoints/video-llava-7b-without-time/config.json").read_text())
        assert config["mm_video_config"]["add_time_attn"] is False


@pytest.mark.parametrize("command", [line for line in COMMANDS if "bash scripts" in line])
def test_every_recipe_makes_a_command(command: str, tmp_path: Path) -> None:
    *settings, _, script, last = [*shlex.split(command), ""] if "reproduce" not in command else shlex.split(command)
    variables = dict(word.split("=", 1) for word in settings)
    shell = Shell(tmp_path / "bin", {**MACHINES["gpu8"].tools, "python": "exit 0"})
    status, said, error = shell.run(
        script, *filter(None, [last]), DRY_RUN="1", OUTPUT=str(tmp_path / "out"), **variables
    )
    assert status == 0 and "llava" in said, error


def test_the_script_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    (place / "script.py").write_text(blocks("python"))
    runpy.run_path(str(place / "script.py"))
    assert capsys.readouterr().out.strip()


def test_the_figures_are_those_of_the_presets() -> None:
    for name in ("video-960", "video-136"):
        budget = CompressionConfig.resolve(name)
        assert budget.v2v is not None and budget.t2v is not None
        entered = 8 * budget.v2v.token_count(257)
        half = int(entered * budget.t2v.keep[0])
        mean = (16 * entered + 8 * half) // 32
        assert f"| `{name}` | {budget.v2v.dominant} + {budget.v2v.contextual} | {entered:,} | {mean} |" in TEXT
