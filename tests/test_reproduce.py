"""`scripts/reproduce.sh`: its steps, where it goes on, and the table beside the paper's row."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from fake_machine import ROOT, Shell, flags_of

from llava.compression.config import CompressionConfig
from llava.eval import run
from llava.eval.tables.published import read_table

sys.path.insert(0, str(ROOT / "scripts"))
import reproduce_table
from reproduce_table import report

PYTHON = """
echo "$*" >>"$LOG"
case "$*" in
    *llava.data.check*) echo "{}" >"${@: -1}" ;;
    *train_mem.py*)
        while [ "$1" != --output_dir ]; do shift; done
        mkdir -p "$2"
        echo half >>"$2/work"
        exit "${STATUS:-0}"
        ;;
    *llava.eval.data*) exit "${MISSING:-0}" ;;
    *llava.eval.run*) echo "{}" >"${@: -1}" ;;
    *) echo "the table" ;;
esac
"""


@pytest.fixture
def reproduction(tmp_path: Path) -> tuple[Shell, dict[str, str]]:
    """A machine whose interpreter only notes what it is asked, and the variables of a run on it."""
    variables = {"OUTPUT": str(tmp_path / "out put"), "LOG": str(tmp_path / "log"), "DEVICE": "cpu"}
    return Shell(tmp_path / "bin", {"python": PYTHON}), variables


def asked(variables: dict[str, str]) -> list[str]:
    """What the interpreter was asked since the last time, in short."""
    log = Path(variables["LOG"])
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    marks = {
        "check 1": r"data\.check .*--version plain",
        "check 2": r"data\.check .*--version v1",
        "benchmarks": r"eval\.data --check",
        "evaluation": r"eval\.run .*--benchmarks pope,sqa,textvqa,mme,gqa",
        "phase 1": "train_mem.*tune_mm_mlp_adapter",
        "phase 2": "train_mem.*pretrain_mm_mlp_adapter",
        "table": "table",
    }
    return [next(step for step, mark in marks.items() if re.search(mark, line)) for line in lines]


def test_reproducing_goes_on_at_the_step_that_failed(reproduction: tuple[Shell, dict[str, str]]) -> None:
    shell, variables = reproduction
    script, work = "scripts/reproduce.sh", Path(variables["OUTPUT"], "pretrain/work")
    status, _, err = shell.run(script, "duet-64", MISSING="1", **variables)
    assert (status, asked(variables)) == (1, ["benchmarks"]) and "EVALUATE=0 trains without evaluating" in err
    status, _, err = shell.run(script, "duet-64", STATUS="75", **variables)
    assert status == 75, err
    assert asked(variables) == ["benchmarks", "check 1", "check 2", "phase 1"]
    status, out, _ = shell.run(script, "duet-64", **variables)
    assert (status, asked(variables)) == (0, ["benchmarks", "phase 1", "phase 2", "evaluation", "table"])
    assert work.read_text() == "half\nhalf\n", "unfinished work must be continued, not removed"
    assert out.endswith("the table\n")
    status, _, err = shell.run(script, "duet-64", LEARNING_RATE="1", **variables)
    assert (status, asked(variables)) == (1, [])
    assert "was made under other settings" in err and work.exists()
    assert shell.run(script, "duet-64", NUM_DEVICES="2", MAX_BAD_SHARE="0.1", **variables)[0] == 0
    assert asked(variables) == ["check 1", "check 2", "table"]


def test_reproducing_prints_every_step(reproduction: tuple[Shell, dict[str, str]]) -> None:
    shell, variables = reproduction
    own = {"PRETRAIN_BATCH_SIZE": "4", "FINETUNE_LEARNING_RATE": "3e-5", "PRETRAIN_DATA_PATH": "/my data.json"}
    status, out, err = shell.run("scripts/reproduce.sh", "duet-128", DRY_RUN="1", **own, **variables)
    assert status == 0, err
    lines = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    benchmarks, check, _, first, second, evaluation, table = lines
    assert benchmarks[2] == "llava.eval.data" and evaluation[2] == "llava.eval.run"
    assert run.parse(evaluation[3:]).model_path == flags_of(second)["--output_dir"]
    assert check[:5] == ["python", "-m", "llava.data.check", "--data-path", "/my data.json"]
    assert "scripts/reproduce_table.py" in table
    before, after = flags_of(first), flags_of(second)
    assert after["--pretrain_mm_mlp_adapter"] == f"{before['--output_dir']}/mm_projector.bin"
    assert before["--output_dir"] == f"{variables['OUTPUT']}/pretrain"
    assert (before["--data_path"], before["--per_device_train_batch_size"]) == ("/my data.json", "4")
    assert (before["--learning_rate"], after["--learning_rate"]) == ("1e-3", "3e-5")
    assert {before["--compression"], after["--compression"]} == {"duet-128"}
    assert not Path(variables["OUTPUT"]).exists()
    status, _, err = shell.run("scripts/reproduce.sh", "duet-193", **variables)
    assert status == 2 and "the preset is 'duet-193'; give one of duet-128-all, " in err


RELEASED = {
    "duet-192": ("liuhaotian/llava-v1.5-7b", "pope,sqa,textvqa,mme,gqa", "table-1", "llava-1.5"),
    "next-160": ("liuhaotian/llava-v1.6-vicuna-7b", "pope,sqa,textvqa,mme,gqa,seed", "table-9-10", "llava-next"),
    "video-136": ("LanguageBind/Video-LLaVA-7B", "tgif,msvd,msrvtt", "table-4", "video-llava"),
    "qwen-640": ("Qwen/Qwen2.5-VL-7B-Instruct", "pope,sqa,textvqa,mme,gqa", "table-2", "qwen2.5-vl"),
}


@pytest.mark.parametrize("preset", RELEASED)
def test_a_released_model_is_asked_under_the_presets_of_its_family(
    preset: str, reproduction: tuple[Shell, dict[str, str]]
) -> None:
    """The paper trains LLaVA-1.5 alone; the rows of the others are these models, compressed at inference."""
    shell, variables = reproduction
    model, benchmarks, table, family = RELEASED[preset]
    status, out, err = shell.run("scripts/reproduce.sh", preset, DRY_RUN="1", TRAIN="0", **variables)
    assert status == 0, err
    data, evaluation, printed = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    options = run.parse(evaluation[3:])
    assert (options.model_path, options.compression, options.benchmarks) == (model, preset, benchmarks)
    assert data[data.index("--benchmarks") + 1] == benchmarks and printed[printed.index("--table") + 1] == table
    published = read_table(table)
    assert set(published.benchmarks.values()) == set(benchmarks.split(",")) and not published.trained
    assert published.row(preset) is not None and published.row("none") is not None
    made_for = CompressionConfig.from_preset(preset).made_for
    assert made_for is not None and made_for.families == (family,)
    lines = report(preset, Path(variables["OUTPUT"]), None, table, ()).splitlines()
    assert lines[0].split() == [preset, *published.benchmarks, "Avg"] and len(lines) == 3


# Flags of both phases by preset, and what the data is checked for.
TRAINED: dict[str, tuple[list[dict[str, str]], str]] = {
    "next-640": (
        [
            {"--image_aspect_ratio": "anyres", "--tune_mm_mlp_adapter": "True", "--version": "plain"},
            {"--mm_patch_merge_type": "spatial_unpad", "--mm_vision_tower_lr": "2e-6", "--version": "v1"},
        ],
        "--model llava-next-7b",
    ),
    "video-960": (
        [
            {"--video_tower": "LanguageBind/LanguageBind_Video_merge", "--version": "v1"},
            {"--image_tower": "LanguageBind/LanguageBind_Image", "--tokenizer_model_max_length": "3072"},
        ],
        "--model video-llava-7b",
    ),
    "qwen-640": (
        [{"--model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct", "--tune_mm_llm": "True"}],
        "--tokenizer Qwen/Qwen2.5-VL-7B-Instruct --model-max-length 8192",
    ),
    "qwen3-share-35": (
        [{"--model_name_or_path": "Qwen/Qwen3-VL-8B-Instruct", "--max_pixels": "65536", "--tune_mm_vision": "False"}],
        "--tokenizer Qwen/Qwen3-VL-8B-Instruct --model-max-length 8192",
    ),
    "onevision-share-70": (
        [{"--model_name_or_path": "llava-hf/llava-onevision-qwen2-7b-ov-hf", "--mm_vision_tower_lr": "2e-6"}],
        "--tokenizer llava-hf/llava-onevision-qwen2-7b-ov-hf --model-max-length 32768",
    ),
}


def values_of(line: str) -> dict[str, str]:
    """The values of each flag of a command, joined by blanks."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(line.partition("train_mem.py ")[2]):
        if word.startswith("--"):
            name = word
        found.setdefault(name, []).extend([] if word == name else [word])
    return {name: " ".join(values) for name, values in found.items()}


@pytest.mark.parametrize("preset", TRAINED)
def test_a_preset_decides_which_models_are_trained(preset: str, reproduction: tuple[Shell, dict[str, str]]) -> None:
    """video-960 trained a LLaVA-1.5 once, on its data, and was asked LLaVA-1.5's benchmarks."""
    shell, variables = reproduction
    phases, checked_for = TRAINED[preset]
    status, out, err = shell.run("scripts/reproduce.sh", preset, DRY_RUN="1", **variables)
    assert status == 0, err
    lines = [line for line in out.splitlines() if not line.startswith("#")]
    trained = [values_of(line) for line in lines if "train_mem.py" in line]
    checks = [line for line in lines if "llava.data.check" in line]
    assert len(trained) == len(checks) == len(phases) and all(checked_for in line for line in checks)
    for flags, expected, check in zip(trained, phases, checks, strict=True):
        assert flags["--compression"] == preset and expected.items() <= flags.items()
        assert f"--data-path {flags['--data_path']}" in check, "what is checked is what is trained on"
    if len(trained) == 2:
        assert trained[1]["--pretrain_mm_mlp_adapter"] == f"{trained[0]['--output_dir']}/mm_projector.bin"


@pytest.mark.parametrize(
    ("preset", "model"),
    [
        ("qwen3-share-70", "Qwen/Qwen3-VL-8B-Instruct"),
        ("onevision-share-35", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
    ],
)
def test_scores_stand_alone_where_the_paper_has_no_model_of_the_family(
    preset: str, model: str, reproduction: tuple[Shell, dict[str, str]], tmp_path: Path
) -> None:
    shell, variables = reproduction
    status, out, err = shell.run("scripts/reproduce.sh", preset, DRY_RUN="1", TRAIN="0", **variables)
    assert status == 0, err
    _, evaluation, printed = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    options = run.parse(evaluation[3:])
    assert (options.model_path, options.compression) == (model, preset)
    assert printed[printed.index("--table") + 1] == "none"
    (tmp_path / "results.json").write_text(json.dumps({"POPE": 80.25, "MME": 1900.0}))
    lines = report(preset, tmp_path, None, "none", ()).splitlines()
    assert lines[0].split() == [preset, "POPE", "SQA-I", "VQA-T", "MME", "GQA"]
    assert lines[1].split() == ["measured", "80.2", "-", "-", "1900", "-"]
    assert lines[2].startswith("The paper reports no scores of this family") and len(lines) == 3
    lines = report(preset, tmp_path, None, "none", ("finetune",)).splitlines()
    assert "finetune  not trained yet" in lines
    (tmp_path / "finetune").mkdir()
    summary = {"average_visual_tokens": 0.0, "metrics": {"average_visual_tokens": 9.5}, "result": {"train_runtime": 36}}
    (tmp_path / "finetune/train_summary.json").write_text(json.dumps(summary))
    lines = report(preset, tmp_path, None, "none", ("finetune",)).splitlines()
    assert lines[3] == "finetune  0.01 h, 9.50 visual tokens per image and layer on average", (
        "images differ: as counted"
    )


def test_a_folder_is_checked_as_the_model_that_it_holds(
    reproduction: tuple[Shell, dict[str, str]], tmp_path: Path
) -> None:
    shell, variables = reproduction
    (tmp_path / "config.json").write_text("{}")
    more = {"MODEL": str(tmp_path), "FINETUNE_MAX_LENGTH": "4096", "DRY_RUN": "1"}
    for preset in ("qwen-640", "qwen3-share-70", "onevision-share-70"):
        status, out, err = shell.run("scripts/reproduce.sh", preset, **variables, **more)
        assert status == 0, err
        (check,) = (line for line in out.splitlines() if "llava.data.check" in line)
        assert f"--model {tmp_path} " in check and "--model-max-length 4096" in check and "--version" not in check


def test_what_a_plan_cannot_be_made_of_is_refused(reproduction: tuple[Shell, dict[str, str]]) -> None:
    shell, variables = reproduction
    deep = {"MODEL": "liuhaotian/llava-v1.6-vicuna-13b", "TRAIN": "0", "DRY_RUN": "1"}
    for preset, more, reason in (
        ("duet-64", {"FAMILY": "video-llava"}, "duet-64 is made for llava-1.5, but FAMILY is 'video-llava'"),
        ("none", {"FAMILY": "bert"}, "FAMILY is 'bert'; accepted are llava-1.5, "),
        ("none", {"TRAIN": "0", "EVALUATE": "0"}, "leave nothing to do"),
        ("next-640", deep, "next-640 is made for 32 decoder layers, but liuhaotian/llava-v1.6-vicuna-13b has 40"),
        ("next-640", {**deep, "SCALE_TO_DEPTH": "perhaps"}, "SCALE_TO_DEPTH is 'perhaps'"),
    ):
        status, out, err = shell.run("scripts/reproduce.sh", preset, **variables, **more)
        assert (status, out) == (2, "") and reason in err, err
    status, out, err = shell.run("scripts/reproduce.sh", "next-640", SCALE_TO_DEPTH="True", **deep, **variables)
    assert status == 0 and "--compression next-640 --scale-to-depth" in out, err


def test_every_budget_that_can_be_reproduced_has_a_row_and_a_time() -> None:
    for preset in ("none", "duet-192", "duet-128", "duet-64"):
        row, times = read_table("table-3").row(preset), read_table("table-6").row(preset)
        assert row is not None and set(row.scores) == {"POPE", "SQA-I", "VQA-T", "MME", "GQA"}
        assert times is not None and times.others


def test_the_table_stands_beside_the_papers_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, hours in (("run", 3), ("none", 4)):
        for phase, share in (("pretrain", 0.25), ("finetune", 0.75)):
            summary = {"average_visual_tokens": 191.75, "result": {"train_runtime": 3600 * hours * share}}
            (tmp_path / folder / phase).mkdir(parents=True)
            (tmp_path / folder / phase / "train_summary.json").write_text(json.dumps(summary))
    words = ["--preset", "duet-192", "--folder", str(tmp_path / "run"), "--uncompressed", str(tmp_path / "none")]

    def printed() -> list[str]:
        reproduce_table.main(words)
        return capsys.readouterr().out.splitlines()

    empty = printed()
    assert empty[1].split() == ["paper", "85.5", "69.6", "58.2", "1826", "62.4", "99.7"]
    assert empty[2].split() == ["measured", *"------"]
    # Half the baseline in POPE, all of it elsewhere: 90 per cent of five benchmarks.
    scores = {"POPE": 42.95, "SQA-I": 69.5, "VQA-T": 58.2, "MME": 1862.04, "GQA": 61.9}
    (tmp_path / "run/results.json").write_text(json.dumps(scores))
    lines = printed()
    assert lines[2].split()[-1] == "90.0" and "1862" in lines[2]
    (tmp_path / "run/results.json").write_text(json.dumps({"POPE": 42.95, "MME": 1862.04}))
    partial = printed()
    assert partial[2].split() == ["measured", "43.0", "-", "-", "1862", "-", "-"], "no average over two of five"
    assert lines[4].split()[:2] == ["pretrain", "0.75"] and lines[5].split()[:2] == ["finetune", "2.25"]
    assert "191.75 visual tokens" in lines[5]
    assert lines[6] == "training time saved: 25.0 % (paper: 26.0 %)"
    half = {"train_runtime": 4050, "step": 5000, "train_steps_per_second": 0.617}  # 2,500 steps in this time
    (tmp_path / "run/finetune/train_summary.json").write_text(json.dumps({"result": half}))
    resumed = printed()
    assert "1.12 h since it was resumed" in resumed[5] and "saved: not known" in resumed[6]
