"""The README's commands exist and run; the quickstart in a size that says nothing but goes through every step."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import eval_files_choice
import eval_files_vqa
import pytest
from tiny_llava import write_assets
from warm_python import run_program, warm_python

from llava.eval.run import PAPER
from llava.serve.web import __main__ as web
from llava.serve.web.uploads import UploadFolder
from playground.quickstart.results import Results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OUTPUT = "playground/output/quickstart"
WRITERS = eval_files_vqa.WRITERS | eval_files_choice.WRITERS
TINY = {
    "QUICKSTART_CAPTIONS": "16",
    "QUICKSTART_TRAIN": "16",
    "QUICKSTART_QUESTIONS": "12",
    "QUICKSTART_PRETRAIN_STEPS": "1",
    "QUICKSTART_FINETUNE_STEPS": "1",
}


def blocks(language: str) -> list[str]:
    """The README's code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """The README's shell commands, one a line, without comments."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def shell(command: str, **variables: str) -> str:
    """Run a command from the repository with this interpreter, its imports done, and return all it says."""
    folders = (Path(warm_python()).parent, Path(sys.executable).parent, os.environ["PATH"])
    environment = os.environ | {"PYTHON": warm_python(), "PATH": os.pathsep.join(map(str, folders))} | variables
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a tiny quickstart."""
    assert "bash scripts/quickstart.sh" in commands()
    output = tmp_path_factory.mktemp("quickstart")
    shell("bash scripts/quickstart.sh", QUICKSTART_OUTPUT=str(output), **TINY)
    return output


def test_quickstart_evaluates_every_budget(quickstart: Path) -> None:
    results = Results.load(quickstart / "results.json")
    budgets = [f"{choice}-{share}" for choice in ("duet", "random", "uniform") for share in (67, 78, 89)]
    assert [setting.name for setting in results.settings] == ["none", *budgets, "blank images"]
    assert all(len(setting.answers) == 12 for setting in results.settings)
    averages = {setting.name: setting.average_tokens for setting in results.settings}
    assert averages["none"] == averages["blank images"] == 144
    for share, average in ((67, 47.5), (78, 31.75), (89, 15.5)):
        assert {averages[f"{choice}-{share}"] for choice in ("duet", "random", "uniform")} == {average}


def test_quickstart_report_has_every_part_and_needs_nothing_else(quickstart: Path) -> None:
    report = (quickstart / "report.html").read_text(encoding="utf-8")
    parts = (
        "Accuracy and cost",
        "Accuracy over budget",
        "layer by layer",
        "Where the patches go",
        "Phase 1",
        "Phase 2",
    )
    assert [part for part in (*parts, "What was run", "uniform-89", "blank images") if part not in report] == []
    for mark in ("dropped by V2V", "merged by V2V", "dropped by T2V after layer 4", "after layer 6"):
        assert mark in report
    assert report.count('class="example"') == 6
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', report) == []
    assert "url(http" not in report and "@import" not in report and "<script" not in report


def test_quickstart_does_nothing_twice(quickstart: Path) -> None:
    said = shell("bash scripts/quickstart.sh", QUICKSTART_OUTPUT=str(quickstart), **TINY)
    assert said.count("done already") == 5


@pytest.fixture(scope="module")
def converted(quickstart: Path) -> Path:
    """The quickstart's model in transformers' format, made by the README's command."""
    for command in modules("llava.model.convert"):
        assert "model-hf" in shell(command.replace(OUTPUT, str(quickstart)))
    return quickstart / "model-hf"


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code: str, quickstart: Path, converted: Path) -> None:
    here = code.replace(OUTPUT, str(quickstart))
    if "llava-hf/" in here:  # 14 GB; the quickstart's model has fewer layers than the preset asks for
        here = here.replace("llava-hf/llava-1.5-7b-hf", str(converted))
        here = here.replace("duet-192", "playground/quickstart/duet-67.yaml")
    done = run_program(["-c", here], ROOT)
    assert done.returncode == 0, done.stderr


def test_the_chat_answers_and_draws(quickstart: Path, tmp_path: Path) -> None:
    for command in modules("llava.serve.cli"):
        here = command.replace(OUTPUT, str(quickstart)).replace("seen.png", str(tmp_path / "seen.png"))
        said = shell(f"printf 'What is the top left digit?\\nWhat is red?\\n' | {here}")
        assert said.count("visual tokens by layer 0-3: 76") == 2
        assert (tmp_path / "seen.png").stat().st_size > 1000


def test_the_page_opens_with_the_quickstarts_model_and_questions(
    quickstart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    (command,) = [line for line in commands() if "llava.serve.web" in line]
    monkeypatch.setenv("QUICKSTART_OUTPUT", str(quickstart))
    folder = UploadFolder()
    try:
        handlers = web.open_page(web._parser().parse_args(shlex.split(command)[3:]), folder).handlers
        assert {"duet-67", "duet-89", "random-78"} <= set(handlers.budgets.named)
        asked = (quickstart / "data" / "test.jsonl").read_text(encoding="utf-8")
        assert handlers.examples and all(example.text in asked for example in handlers.examples)
    finally:
        folder.close()


def test_costs_are_measured_beside_the_limit(quickstart: Path) -> None:
    for command in modules("llava.eval.cost"):
        said = shell(command.replace(OUTPUT, str(quickstart)))
        assert "duet-67" in said and "duet-89" in said


def test_benchmarks_are_described_asked_and_put_into_tables(quickstart: Path, tmp_path: Path) -> None:
    for command in modules("llava.eval.data"):
        said = shell(command)
        assert "GQA" in said and "playground/data/eval" in said
    for name in PAPER:
        WRITERS[name](tmp_path / "eval")
    for command in modules("llava.eval.run"):
        here = command.replace("/checkpoints/duet-192", str(quickstart / "model"))
        here = here.replace("--num-gpus 8", "--num-gpus 1").replace("results", str(tmp_path / "results"))
        said = shell(f"{here} --eval-folder {tmp_path / 'eval'} --conv-mode v1 --max-new-tokens 4")
        assert all(title in said for title in ("POPE", "SQA-I", "VQA-T", "MME", "GQA"))
    for command in modules("llava.eval.table"):
        assert "47.5" in shell(command.replace("results", str(tmp_path / "results")))


@pytest.mark.parametrize("command", [line for line in commands() if "scripts/v1_5" in line])
def test_cluster_recipes_make_a_command(command: str) -> None:
    assert "train_mem.py" in shell(command, DRY_RUN="1")


def modules(name: str) -> list[str]:
    """The README's commands that run a module."""
    found = [line for line in commands() if line.startswith(f"python -m {name} ")]
    assert found, name
    return found


def test_the_schedule_is_printed() -> None:
    for command in modules("llava.compression.schedule"):
        assert "191.75" in shell(command)


@pytest.mark.slow
def test_the_doctor_says_what_fits() -> None:
    for command in modules("llava.doctor"):
        said = shell(command)
        assert "finetune" in said and "ZeRO" in said


def test_the_data_check_reads_a_data_set(tmp_path: Path) -> None:
    assets = write_assets(tmp_path)
    for command in modules("llava.data.check"):
        here = command.replace("/data/llava_v1_5_mix665k.json", str(assets / "chats.json"))
        here = here.replace("--image-folder /data", f"--image-folder {assets / 'images'}")
        here = here.replace("/data/clean.json", str(tmp_path / "clean.json"))
        assert "/data" not in here.replace(str(tmp_path), "")
        assert "16" in shell(here)
        assert len(json.loads((tmp_path / "clean.json").read_text())) == 16


def test_every_module_command_is_run_here() -> None:
    tried = (
        "llava.compression.schedule",
        "llava.doctor",
        "llava.data.check",
        "llava.model.convert",
        "llava.serve.cli",
        "llava.serve.web",
        "llava.eval.cost",
        "llava.eval.data",
        "llava.eval.run",
        "llava.eval.table",
    )
    assert {line.split()[2] for line in commands() if line.startswith("python -m")} == set(tried)


def test_every_module_and_file_that_is_named_exists() -> None:
    for module in re.findall(r"python -m ([\w.]+)", README):
        assert importlib.util.find_spec(module), module
    for path in re.findall(r"\]\((?!http)([^)#]+)\)|`(tests/[\w/.]+|scripts/[\w/.]+|configs/[\w/]+)`", README):
        assert (ROOT / "".join(path)).exists(), path


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    last = lines[-1]
    assert last == "bash scripts/test.sh" and last in commands()
    rest = [line for line in lines[:-1] if not line.startswith(("#", "set ", "cd ", "CDPATH='' cd "))]
    install = "apt-get update && apt-get install -y --no-install-recommends chromium"  # for the tests of the page
    assert [line.split(" ")[0] for line in rest] == ["if", "", "fi"] and f"({install})" in rest[1] and install in README
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
