"""How many GPUs the scripts of scripts/v1_5 count: those that torch would see, whatever restricts them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_machine import LAUNCHERS, Shell, amd, before_script, flags_of, nvidia, recipe

SCRIPT = "scripts/v1_5/eval/gqa.sh"
NVIDIA, AMD = nvidia(4), amd(4)
COUNTED = [
    # Tools of the machine, variables, GPUs that can be used.
    (NVIDIA, {}, 4),
    (NVIDIA, {"CUDA_VISIBLE_DEVICES": "1,3"}, 2),
    (NVIDIA, {"CUDA_VISIBLE_DEVICES": "1, 3"}, 2),
    (NVIDIA, {"CUDA_VISIBLE_DEVICES": "GPU-0a,MIG-1b"}, 2),
    (NVIDIA, {"CUDA_VISIBLE_DEVICES": ""}, 0),
    (NVIDIA, {"CUDA_VISIBLE_DEVICES": "-1"}, 0),
    (NVIDIA, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
    (NVIDIA, {"CUDA_VISIBLE_DEVICES": "2,-1,3"}, 1),
    (NVIDIA, {"CUDA_VISIBLE_DEVICES": "0,9,1"}, 1),
    (NVIDIA, {"CUDA_VISIBLE_DEVICES": "0,1,0"}, 0),
    (NVIDIA, {"HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": ""}, 4),
    (AMD, {"CUDA_VISIBLE_DEVICES": ""}, 0),
    (AMD, {"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "0"}, 0),
    (AMD, {"HIP_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "-1"}, 2),
    (AMD, {"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1,2"}, 1),
    (AMD, {"ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "0"}, 0),
    (NVIDIA | AMD, {}, 4),
    ({}, {"CUDA_VISIBLE_DEVICES": "0,1"}, 0),
]


@pytest.mark.parametrize(("tools", "variables", "gpus"), COUNTED)
def test_an_evaluation_starts_a_process_for_each_gpu_that_can_be_used(
    tools: dict[str, str], variables: dict[str, str], gpus: int, tmp_path: Path
) -> None:
    words = Shell(tmp_path / "bin", tools).command(SCRIPT, **variables)
    assert asked(words) == (str(gpus or 1), "16" if gpus else "1")


@pytest.mark.parametrize(("tools", "variables", "gpus"), COUNTED)
def test_a_recipe_trains_on_each_gpu_that_can_be_used(
    tools: dict[str, str], variables: dict[str, str], gpus: int, tmp_path: Path
) -> None:
    shell = Shell(tmp_path / "bin", {**LAUNCHERS, **tools})
    words = shell.command(recipe("finetune"), LAUNCHER="torchrun", **variables)
    launcher = before_script(words)
    assert launcher[launcher.index("--nproc_per_node") + 1] == str(gpus or 1)
    assert (flags_of(words).get("--use_cpu") == "True") == (gpus == 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--device", "cpu"], ("1", "1")),
        (["a-model", "--device=cpu"], ("1", "1")),
        (["--device", "cpu", "--device", "cuda"], ("4", "16")),
        (["--device", "cuda:2"], ("1", "16")),
    ],
)
def test_the_device_on_the_command_line_decides(words: list[str], expected: tuple[str, str], tmp_path: Path) -> None:
    assert asked(Shell(tmp_path / "bin", NVIDIA).command(SCRIPT, *words)) == expected


def test_what_the_user_chose_stays(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", NVIDIA)
    words = shell.command(SCRIPT, "--device", "cpu", NUM_GPUS="2", BATCH_SIZE="3", CUDA_VISIBLE_DEVICES="")
    assert asked(words) == ("2", "3")


@pytest.mark.parametrize("hiding", ["", "-1"])
def test_a_recipe_says_which_variable_hides_the_gpus(hiding: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", {**LAUNCHERS, **NVIDIA})
    variables = {"DRY_RUN": "1", "CUDA_VISIBLE_DEVICES": hiding}
    status, _, err = shell.run(recipe("finetune"), **variables)
    assert status == 0
    assert f"CUDA_VISIBLE_DEVICES is '{hiding}', which leaves no GPU: this trains on the CPU." in err
    for chosen in ({"DEVICE": "cuda", "NUM_DEVICES": "4"}, {"USE_CPU": "False"}):
        status, out, err = shell.run(recipe("finetune"), **variables, **chosen)
        assert (status, out) == (2, "")
        assert (
            err == f"error: CUDA_VISIBLE_DEVICES is '{hiding}', which leaves no GPU; unset it, or set DEVICE to cpu.\n"
        )


def test_processes_get_only_gpus_that_can_be_used(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", {**LAUNCHERS, **NVIDIA})
    words = shell.command(recipe("finetune"), CUDA_VISIBLE_DEVICES="2, 3,-1,0")
    assert words[0] == "CUDA_VISIBLE_DEVICES=2,3" and "localhost:2,3" in words


def asked(words: list[str]) -> tuple[str, str]:
    """Processes and batch of an evaluation's command."""
    return words[words.index("--num-gpus") + 1], words[words.index("--batch-size") + 1]
