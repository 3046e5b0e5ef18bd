"""The doctor: what fits, what this machine has, and how each fault becomes a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from warm_python import warm_python

from llava.compression import CompressionConfig
from llava.cost.machine import DeviceFacts, System, TorchBuild, probe_devices, probe_system, probe_torch
from llava.cost.memory import GIB
from llava.cost.recipes import RECIPES
from llava.cost.shapes import ModelShape
from llava.doctor import __main__ as program
from llava.doctor import packages
from llava.doctor.communication import CommunicationTest, try_communication
from llava.doctor.diagnosis import to_json, to_text
from llava.doctor.examination import Imports, Machine
from llava.doctor.faults import find_faults
from llava.doctor.fitting_recipes import FitRequest, Room, batch_sizes, best_plan, table
from llava.doctor.imports import import_errors
from llava.doctor.kernels import Check, attention_checks, eager_attention, precision_checks
from llava.doctor.packages import Package, read_packages

ROOT = Path(__file__).resolve().parents[1]


# === What fits ===


def room(memory: float = 80, devices: int = 8, host: float | None = 1000, local: int = 8) -> Room:
    per_host = min(devices, local or 8)
    return Room(devices, per_host, memory * GIB, None if host is None else host * GIB, local)


def request(compression: str = "duet-192", model: str = "llava-1.5-7b") -> FitRequest:
    return FitRequest(ModelShape.of(model), CompressionConfig.resolve(compression), compression)


def test_full_fine_tuning_of_7b_fits_eight_devices_of_80_but_not_plain_data_parallelism() -> None:
    cells = {cell.stage: cell for cell in table(request(), room())["finetune"]}
    assert not cells["0"].fits and cells["2"].fits and cells["3"].fits
    small = {cell.stage: cell.fits for cell in table(request(), room(24))["finetune"]}
    assert not any(small[stage] for stage in ("0", "1", "2", "3"))


def test_offloading_needs_room_on_the_host() -> None:
    def offload(host: float | None) -> bool:
        return table(request(), room(40, host=host))["finetune"][-1].fits

    assert offload(200) and offload(None) and not offload(100)


def test_quantised_weights_are_not_divided_by_zero_3() -> None:
    cells = table(request(), room())["finetune_qlora"]
    assert [cell.need is None for cell in cells] == [False, False, False, True, True]
    assert cells[3].reason is not None and "cannot be divided" in cells[3].reason


def test_advice_prefers_zero_2_and_the_recipes_batch() -> None:
    plan = best_plan(request(), RECIPES["finetune"], room())
    assert plan is not None and (plan.stage, plan.batch_size, plan.checkpointing) == ("2", 16, True)
    assert plan.command == "DEEPSPEED_CONFIG=./scripts/zero2.json BATCH_SIZE=16 bash scripts/v1_5/finetune.sh"


def test_advice_goes_on_to_zero_3_smaller_batches_and_the_host() -> None:
    def advice(memory: float, recipe: str = "finetune", **changes: Any) -> tuple[str, int, int] | None:
        plan = best_plan(request(), RECIPES[recipe], room(memory, **changes))
        return plan and (plan.stage, plan.batch_size, plan.accumulation)

    assert advice(40) == ("3", 16, 1)
    assert advice(28) == ("3", 8, 2)
    assert advice(12) is not None and advice(12)[0] == "3+offload"  # type: ignore[index]
    assert advice(4) is None


def test_a_device_with_much_room_needs_no_checkpointing() -> None:
    plan = best_plan(request("duet-64"), RECIPES["pretrain"], room(141))
    assert plan is not None and not plan.checkpointing
    assert plan.command.startswith("COMPRESSION=duet-64 DEEPSPEED_CONFIG=./scripts/zero2.json BATCH_SIZE=32 GRADIENT")
    assert plan.command.endswith("GRADIENT_CHECKPOINTING=False bash scripts/v1_5/pretrain.sh")


def test_batches_divide_what_a_device_has_to_do() -> None:
    assert batch_sizes(RECIPES["finetune"], 8) == [16, 8, 4, 2, 1]
    assert batch_sizes(RECIPES["finetune"], 64) == [2, 1]
    assert batch_sizes(replace(RECIPES["finetune"], global_batch=120), 8) == [15, 5, 3, 1]
    huge = replace(RECIPES["finetune"], batch_size=2**31 - 1)
    assert batch_sizes(huge, 8)[:2] == [16, 8] and batch_sizes(huge, 3)[:3] == [2**31 - 1, 128, 127]
    plan = best_plan(request(model="llava-1.5-13b"), RECIPES["finetune_lora"], room(devices=3, local=3))
    assert plan is not None and "MODEL=lmsys/vicuna-13b-v1.5" in plan.command
    assert f"ACCUMULATION={round(128 / (3 * plan.batch_size))}" in plan.command  # 128 is not a multiple of 3


# === The recipes' table ===


def printed_flags(recipe: str) -> dict[str, str]:
    """Flags that a recipe would start the trainer with on eight devices."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    choice = {"DRY_RUN": "1", "DEVICE": "cuda", "LAUNCHER": "deepspeed", "NUM_DEVICES": "8", "PATH": path}
    command = ["bash", f"scripts/v1_5/{recipe}.sh"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **choice}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    return {word: value for word, value in zip(words, words[1:], strict=False) if word.startswith("--")}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_the_scripts_do(name: str) -> None:
    recipe = RECIPES[name]
    assert (ROOT / recipe.script).is_file()
    flags = printed_flags(name)
    assert int(flags["--per_device_train_batch_size"]) == recipe.batch_size
    passes = int(flags["--gradient_accumulation_steps"])
    assert recipe.batch_size * passes * 8 == recipe.global_batch
    assert flags["--deepspeed"] == f"./scripts/zero{recipe.zero}.json"
    zero = json.loads((ROOT / flags["--deepspeed"]).read_text())["zero_optimization"]
    assert zero["stage"] == recipe.zero
    assert flags["--activation_checkpointing"] == "True" and flags["--bf16"] == "True"
    assert (flags.get("--tune_mm_mlp_adapter") == "True") == (recipe.trained == "projector")
    assert (flags.get("--lora_enable") == "True") == (recipe.trained == "lora")
    assert int(flags.get("--bits", 16)) == recipe.bits
    if recipe.trained == "lora":
        assert int(flags["--lora_r"]) == recipe.lora_rank
        assert float(flags["--lora_dropout"]) == recipe.lora_dropout
    if recipe.bits == 4:
        assert flags["--double_quant"] == str(recipe.double_quant)
    if not recipe.longest_has_image:
        assert int(flags["--model_max_length"]) == recipe.longest_text


# === This machine ===


def test_probes_on_this_machine(tmp_path: Path) -> None:
    system = probe_system(str(tmp_path / "not/there/yet"))
    assert system.disk_free is not None and system.disk_free > 0
    assert system.memory is not None and 0 < (system.memory_free or 0) <= system.memory
    assert probe_torch().version == torch.__version__
    assert len(probe_devices()) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_devices_are_read_for_cuda_and_rocm_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="AMD Instinct MI300X", total_memory=192 * GIB, gcnArchName="gfx942", major=9, minor=4
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert probe_devices() == (DeviceFacts("AMD Instinct MI300X", 192 * GIB, "sm_94"),) * 2
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert probe_devices()[0].architecture == "gfx942"
    assert (probe_torch().backend, probe_torch().backend_version) == ("ROCm", "7.0")

    def lost(index: int) -> Any:
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lost)
    assert probe_devices() == ()


def test_kernels_that_run_are_told_from_those_that_do_not() -> None:
    cpu = torch.device("cpu")
    states = {check.name: check.state for check in (*precision_checks(cpu), *attention_checks(cpu))}
    expected = {"bf16": "ok", "fp16": "ok", "eager": "ok", "sdpa flash": "ok", "sdpa math": "ok"}
    absent = ("sdpa efficient", "sdpa cudnn", "flash_attention_2")
    assert states == {**expected, **dict.fromkeys(absent, "absent")}


def test_the_reference_is_attention() -> None:
    queries, keys, values = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(1)).unbind()
    for head in range(2):
        for position in range(5):
            logits = torch.stack(
                [queries[head, position] @ keys[head, other] / 8**0.5 for other in range(position + 1)]
            )
            expected = sum(
                weight * values[head, other] for other, weight in enumerate(logits.exp() / logits.exp().sum())
            )
            torch.testing.assert_close(eager_attention(queries, keys, values)[head, position], expected)


def test_a_kernel_that_computes_wrong_numbers_or_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(*inputs: Any, is_causal: bool) -> torch.Tensor:
        return eager_attention(*inputs) / 2

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", halved)
    states = {check.name: check for check in attention_checks(torch.device("cpu"))}
    assert states["eager"].state == "ok" and states["sdpa flash"].state == "wrong"

    def broken(*inputs: Any, is_causal: bool) -> torch.Tensor:
        raise RuntimeError("an illegal instruction\nwas met")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", broken)
    check = {check.name: check for check in attention_checks(torch.device("cpu"))}["sdpa math"]
    assert (check.state, check.detail) == ("failed", "an illegal instruction")


def test_packages_are_read_with_range_and_pin() -> None:
    found = {package.name: package for package in read_packages()}
    assert found["transformers"].accepted == "<5.25,>=5.23" and found["transformers"].extra == ""
    assert found["torch"].tested == "2.13.0" and found["torch"].installed == torch.__version__
    assert found["peft"].extra == "train" and "gradio" not in found
    assert not any(package.outside for package in found.values() if package.extra == "")


def test_versions_outside_the_range_are_told() -> None:
    package = Package("transformers", "", "5.24.1", ">=5.23,<5.24", "5.23.0")
    assert package.outside and not replace(package, installed="5.23.9").outside
    assert not replace(package, installed="5.23.0+local", accepted=">=5.23").outside
    assert replace(package, installed="odd version").outside and not replace(package, installed=None).outside


def test_an_import_that_fails_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brokenpackage.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    errors = import_errors(("brokenpackage", "json", "notinstalledanywhere"))
    assert errors == {"brokenpackage": "RuntimeError: operator torchvision::nms does not exist"}


def test_processes_that_hang_or_fail_are_ended() -> None:
    late = try_communication("gloo", 2, seconds=0.1)
    assert not late.works and "hangs" in late.detail
    wrong = try_communication("no-such-backend", 1)
    assert not wrong.works and "process 0 failed" in wrong.detail and "no-such-backend" in wrong.detail.lower()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("", "ended the process (exit status 0): it said nothing"),
        ("import sys; sys.exit('no torch')", "ended the process (exit status 1): no torch"),
        ("print('{no JSON')", "Expecting property name"),
        ("import time; time.sleep(60)", "took more than 0.2 s"),
    ],
)
def test_imports_that_cannot_be_tried_are_told(program: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run
    monkeypatch.setattr(packages, "IMPORT_SECONDS", 0.2 if "sleep" in program else 60)
    monkeypatch.setattr(subprocess, "run", lambda _, **how: run([sys.executable, "-c", program], **how))
    found = packages.try_imports()
    assert said in (found.problem or "") and not found.errors and not found.operations


# === Faults ===

HEALTHY = Machine(
    system=System("Linux 6", "3.11.7", 64, 1000 * GIB, 900 * GIB, "./checkpoints", 2000 * GIB, 64 * GIB),
    torch=TorchBuild("2.13.0+cu130", "CUDA", "13.0", ("CUDA",)),
    devices=(DeviceFacts("NVIDIA H100 80GB HBM3", 79 * GIB, "sm_90"),) * 8,
    precision=(Check("bf16", "ok"), Check("fp16", "ok")),
    attention=(Check("eager", "ok"), Check("sdpa flash", "ok"), Check("flash_attention_2", "absent", "not installed")),
    packages=(
        Package("torch", "", "2.13.0+cu130", ">=2.11", "2.13.0"),
        Package("transformers", "", "5.23.0", ">=5.23,<5.24", "5.23.0"),
        Package("deepspeed", "train", "0.19.8", ">=0.19", "0.19.8"),
        Package("peft", "train", None, ">=0.21", "0.21.2"),
    ),
    imports=Imports({}, {"cpu_adam": True}),
    tools={"g++": "/usr/bin/g++", "ninja": "/usr/bin/ninja"},
    communication=CommunicationTest("nccl", 8, True, 300.0),
)
CPU_ONLY = replace(HEALTHY, devices=(), torch=TorchBuild("2.13.0+cpu", "CPU", None, ()), communication=None)


def with_package(name: str, **changes: Any) -> Machine:
    packages = [replace(one, **changes) if one.name == name else one for one in HEALTHY.packages]
    return replace(HEALTHY, packages=tuple(packages))


def with_check(name: str, state: Any, detail: str = "") -> Machine:
    attention = tuple(Check(name, state, detail) if one.name == name else one for one in HEALTHY.attention)
    precision = tuple(Check(name, state, detail) if one.name == name else one for one in HEALTHY.precision)
    return replace(HEALTHY, attention=attention, precision=precision)


FAULTS: dict[str, tuple[Machine, str, bool, list[str]]] = {
    "driver without build": (
        replace(CPU_ONLY, torch=TorchBuild("2.13.0+cpu", "CPU", None, ("ROCm",))),
        "finetune",
        True,
        ["ROCm driver", "built for CPU", "install the ROCm build"],
    ),
    "build without device": (
        replace(HEALTHY, devices=(), communication=None),
        "finetune",
        True,
        ["sees no device", "CUDA_VISIBLE_DEVICES"],
    ),
    "package missing": (HEALTHY, "finetune_lora", True, ["peft is not installed", "finetune_lora", '".[train]"']),
    "package too new": (
        with_package("transformers", installed="5.24.0"),
        "finetune",
        True,
        ["transformers is 5.24.0", ">=5.23,<5.24", "5.23.0 is tested", 'pip install -c constraints.txt -e "."'],
    ),
    "optional package too old": (with_package("peft", installed="0.1"), "finetune", False, ["peft is 0.1"]),
    "torchvision": (
        replace(HEALTHY, imports=Imports({"torchvision": "RuntimeError: nms", "transformers": "E: x"}, {})),
        "finetune",
        True,
        ["torchvision does not match torch", "RuntimeError: nms", "pip uninstall torchvision"],
    ),
    "flash-attn": (
        replace(HEALTHY, imports=Imports({"flash_attn": "ImportError: undefined symbol"}, {})),
        "finetune",
        True,
        ["flash-attn", "undefined symbol", "--no-build-isolation"],
    ),
    "any other import": (
        replace(HEALTHY, imports=Imports({"peft": "ImportError: x"}, {})),
        "finetune",
        True,
        ["peft", "reinstall it"],
    ),
    "imports end the process": (
        replace(HEALTHY, imports=Imports({}, {}, "Importing took more than 180 s.")),
        "finetune",
        True,
        ["180 s"],
    ),
    "wrong attention": (
        with_check("sdpa flash", "wrong", "differs by 3"),
        "finetune",
        True,
        ["sdpa flash computes wrong numbers", "differs by 3", "--attn_implementation"],
    ),
    "no bf16": (with_check("bf16", "failed", "x"), "finetune", True, ["bf16 fails", "--fp16 True"]),
    "no fp16": (with_check("fp16", "failed", "x"), "finetune", False, ["fp16 fails", "--bf16 True"]),
    "no fused kernel": (with_check("sdpa flash", "absent"), "finetune", False, ["No fused attention kernel"]),
    "no compiler": (
        replace(CPU_ONLY, tools={"g++": None, "ninja": "/n"}),
        "finetune",
        False,
        ["g++", "LAUNCHER=torchrun"],
    ),
    "ranks do not talk": (
        replace(HEALTHY, communication=CommunicationTest("nccl", 8, False, detail="no answer within 90 s: it hangs")),
        "finetune",
        True,
        ["8 processes through nccl", "it hangs", "NCCL_DEBUG=INFO"],
    ),
    "disk": (
        replace(HEALTHY, system=replace(HEALTHY.system, disk_free=50 * GIB)),
        "finetune",
        False,
        ["50 GiB free", "191 GiB", "--output-dir"],
    ),
    "shared memory": (
        replace(HEALTHY, system=replace(HEALTHY.system, shared_memory=64 * 2**20)),
        "finetune",
        False,
        ["/dev/shm is 64 MiB", "--shm-size"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_becomes_one_sentence(name: str) -> None:
    machine, recipe, broken, words = FAULTS[name]
    faults = find_faults(machine, request(), RECIPES[recipe], room())
    assert len(faults) == 1, faults
    assert faults[0].broken == broken
    for word in words:
        assert word in faults[0].text


def test_a_healthy_machine_has_no_fault_and_broken_ones_come_first() -> None:
    assert find_faults(HEALTHY, request(), RECIPES["finetune"], room()) == ()
    both = replace(FAULTS["disk"][0], communication=FAULTS["ranks do not talk"][0].communication)
    assert [fault.broken for fault in find_faults(both, request(), RECIPES["finetune"], room())] == [True, False]


# === The command line ===


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run the command line as if on a given machine."""

    def run(machine: Machine, *arguments: str) -> int:
        monkeypatch.setattr(program, "examine", lambda output_dir, comm_test: machine)
        return program.main(arguments)

    yield run


@pytest.mark.parametrize("machine", [HEALTHY, CPU_ONLY], ids=["eight GPUs", "CPU"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_report_fits_a_screen(on: Any, machine: Machine, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    packages = [replace(one, installed=one.installed or "1.0", accepted="") for one in machine.packages]
    assert on(replace(machine, packages=tuple(packages)), "--recipe", recipe) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 110
    assert lines[0] == "This machine" and lines[-1] == "Nothing that training needs is broken."
    assert f"scripts/v1_5/{recipe}.sh" in "\n".join(lines)


def test_this_machines_devices_decide_unless_others_are_asked_about(
    on: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    on(HEALTHY)
    text = capsys.readouterr().out
    assert "8 x NVIDIA H100 80GB HBM3, 79.0 GiB, sm_90" in text
    assert "8 devices of this machine, 79.0 GiB each, 1000 GiB of RAM for offloading" in text
    assert "NUM_DEVICES" not in text
    on(HEALTHY, "--devices", "16", "--device-memory", "40", "--host-memory", "256")
    text = capsys.readouterr().out
    assert "16 devices as assumed or asked, 40.0 GiB each, 256 GiB of RAM" in text
    assert "on each of 2 machines" in " ".join(text.split())
    on(CPU_ONLY)
    text = capsys.readouterr().out
    assert "8 devices as assumed or asked, 80.0 GiB each, RAM not judged" in text and "scripts/quickstart.sh" in text
    on(HEALTHY, "--device-memory", "3")
    assert "fits in no way here" in capsys.readouterr().out


def test_json_holds_everything_the_report_does(on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FAULTS["ranks do not talk"][0]
    assert on(machine, "--json", str(tmp_path / "found.json"), "--batch-size", "4", "--longest-text", "1024") == 1
    assert "BROKEN: An all-reduce of 8 processes" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    options = program._parser().parse_args(["--batch-size", "4", "--longest-text", "1024"])
    diagnosis = program.diagnose(machine, request(), options)
    assert found == json.loads(json.dumps(to_json(diagnosis)))
    assert found["broken"] is True and found["faults"][0]["broken"] is True
    assert found["machine"]["devices"][7]["memory"] == 79 * GIB
    row = {cell["stage"]: cell for cell in found["table"]["finetune"]}
    assert row["3"]["need"]["optimizer"] == 12 * (6_738_415_616 + 20_979_712) / 8
    kept = 32 * 4 * 1024 * 2 * 4096 + 2 * 2 * 128 * 4 * 1024
    assert row["3"]["need"]["activations"] == kept
    assert row["3"]["total"]["checkpointing"] > kept
    assert found["request"]["compression"] == CompressionConfig.resolve("duet-192").to_dict()
    assert found["plan"]["command"] in to_text(diagnosis).replace(" \\\n   ", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", "0"], "--devices is 0; it must be a positive number."),
        (["--device-memory", "-1"], "--device-memory is -1.0; it must be a positive number."),
        (["--json", "/nowhere/at/all.json"], "which is not a folder"),
        (["--model", "nowhere"], "There is no model 'nowhere'"),
        (["--compression", "duet-193"], "duet-193"),
    ],
)
def test_arguments_that_cannot_be_used(
    on: Any, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on(HEALTHY, *arguments) == 2
    output = capsys.readouterr()
    assert words in output.err and output.err.startswith("doctor: ") and not output.out


@pytest.mark.slow
def test_the_command_line_runs_here(tmp_path: Path) -> None:
    command = [warm_python(), "-m", "llava.doctor", "--recipe", "pretrain", "--comm-test"]
    report = tmp_path / "found.json"
    done = subprocess.run([*command, "--json", str(report)], cwd=ROOT, capture_output=True, text=True, timeout=900)
    found = json.loads(report.read_text())
    assert done.returncode == int(found["broken"]), done.stdout + done.stderr
    assert "What pretrain needs" in done.stdout
    machine = found["machine"]
    assert machine["torch"]["version"] == torch.__version__
    assert machine["imports"] == {"errors": {}, "operations": machine["imports"]["operations"], "problem": None}
    assert machine["communication"]["works"] and machine["communication"]["gigabytes_per_second"] > 0
