"""docs/qwen3-vl.md and docs/llava-onevision.md: every command runs on a tiny model as deep as the one it names."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from distributed import ENTRY
from eval_files_vqa import WRITERS
from fake_machine import MACHINES, Shell
from tiny_folder import write_pictures
from tiny_llava import write_assets
from tiny_onevision import write_lmms, write_onevision
from tiny_qwen3 import write_qwen3

from llava.compression.config import CompressionConfig
from llava.cost.flops import average_visual_tokens, tokens_per_layer
from llava.train.train import train

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "qwen3-vl": ("Qwen/Qwen3-VL-8B-Instruct", write_qwen3, 36, "qwen3"),
    "llava-onevision": ("llava-hf/llava-onevision-qwen2-7b-ov-hf", write_onevision, 28, "onevision"),
}
ON_CPUS = {
    "DEVICE": "cpu",
    "LAUNCHER": "python",
    "MAX_STEPS": "1",
    "MAX_LENGTH": "512",
    "TF32": "False",
    "WORKERS": "0",
}
ON_CPUS |= {"GLOBAL_BATCH_SIZE": "2", "BATCH_SIZE": "2"}
QUICK = {
    "llava.serve.cli": ["--device", "cpu", "--max-new-tokens", "3"],
    "llava.eval.run_llava": ["--device", "cpu", "--max_new_tokens", "3"],
    "llava.eval.run": ["--device", "cpu", "--max-new-tokens", "2"],
}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    return [shlex.split(line) for block in blocks(page, "bash") for line in block.splitlines()]


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def place(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: a model under its hub name, two pictures, data and a benchmark."""
    folder = tmp_path_factory.mktemp(page)
    name, write, layers, _ = PAGES[page]
    write(folder / name, layers=layers)
    if page == "llava-onevision":
        write_lmms(folder / "lmms-lab/llava-onevision-qwen2-7b-ov")
    for old, new in zip(write_pictures(folder, 2), ("cat", "dog"), strict=True):
        Path(old).rename(folder / f"{new}.png")
    write_assets(folder / "data")
    WRITERS["pope"](folder / "data/eval")
    return folder


def run_script(words: list[str], shell: Shell) -> None:
    """What a recipe would train, for a machine without a GPU and one step; of the reproduction, its plan."""
    script = words.index("bash") + 1
    variables = dict(word.split("=", 1) for word in words[: script - 1])
    if words[script] == "scripts/reproduce.sh":
        status, out, err = shell.run(*words[script:], DRY_RUN="1", **variables)
        assert status == 0 and f"--compression {words[-1]}" in out and "--table none" in out, err
        return
    command = shell.command(*words[script:], **variables, **ON_CPUS)
    assert "--bf16 False" in " ".join(command)
    folder = train([*command[command.index(ENTRY) + 1 :], "--save_strategy", "no", "--disable_tqdm", "True"])
    assert folder.samefile(variables["OUTPUT_DIR"])


def test_every_command_runs(
    page: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    shell = Shell(tmp_path / "bin", MACHINES["cpu"].tools)
    for words in commands(page):
        monkeypatch.setattr("sys.stdin", io.StringIO("What is this?\n"))
        if "bash" in words:
            run_script(words, shell)
            continue
        assert words[:2] == ["python", "-m"]
        monkeypatch.setattr(sys, "argv", [words[2], *words[3:], *QUICK.get(words[2], [])])
        try:
            runpy.run_module(words[2], run_name="__main__")
        except SystemExit as done:
            assert not done.code, (words, done.code)
        said = capsys.readouterr().out
        assert said.strip(), words
    assert list((place / "report").iterdir())
    results = [json.loads(path.read_text()) for path in (place / "results").rglob("pope.result.json")]
    assert len(results) == 2


def test_the_script_runs(
    page: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (script,) = blocks(page, "python")
    Path("script.py").write_text(script.replace('"cuda"', '"cpu"'))
    runpy.run_path("script.py")
    assert capsys.readouterr().out.startswith("[")


def test_the_figures_are_those_of_the_presets(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    _, _, layers, start = PAGES[page]
    for share, average in ((70, 48), (35, 24)):
        config = CompressionConfig.from_preset(f"{start}-share-{share}")
        tokens = tokens_per_layer(config.t2v, sum(config.v2v.counts(1000)), layers)
        assert round(average_visual_tokens(tokens) / 10) == average and f"{average} %" in text
