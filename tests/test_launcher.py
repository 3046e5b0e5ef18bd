"""The launcher of the recipes: global batch, devices, launchers, what it refuses, and how a run ends."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_machine import CLUSTER, LAUNCHERS, MACHINES, ROOT, SLURM, Shell, amd, before_script, flags_of, nvidia, recipe


@pytest.fixture
def gpu8(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "bin", MACHINES["gpu8"].tools)


# === The global batch ===


@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_the_global_batch_does_not_depend_on_the_devices(name: str, devices: int, gpu8: Shell) -> None:
    nodes = {"NUM_NODES": str(devices // 8), "NODE_RANK": "0", "MASTER_ADDR": "a"} if devices > 8 else {}
    words = gpu8.command(recipe(name), NUM_DEVICES=str(min(devices, 8)), **nodes)
    flags, total, most = flags_of(words), *((256, 32) if name == "pretrain" else (128, 16))
    batch, accumulation = int(flags["--per_device_train_batch_size"]), int(flags["--gradient_accumulation_steps"])
    assert batch * accumulation * devices == total
    assert batch == min(most, total // devices)


@pytest.mark.parametrize(
    ("variables", "batch", "accumulation", "says"),
    [
        ({"BATCH_SIZE": "4"}, "4", "4", ""),
        ({"GLOBAL_BATCH_SIZE": "64"}, "8", "1", ""),
        ({"GLOBAL_BATCH_SIZE": "96"}, "12", "1", ""),
        ({"GLOBAL_BATCH_SIZE": "24", "NUM_DEVICES": "1"}, "12", "2", ""),
        ({"BATCH_SIZE": "10", "ACCUMULATION": "3"}, "10", "3", "The global batch is 240 (8 devices x 10 x"),
        ({"ACCUMULATION": "1"}, "16", "1", ""),
        ({"ACCUMULATION": "2", "GLOBAL_BATCH_SIZE": "256"}, "16", "2", ""),
    ],
)
def test_batch_and_accumulation(
    variables: dict[str, str], batch: str, accumulation: str, says: str, gpu8: Shell
) -> None:
    status, out, err = gpu8.run(recipe("finetune"), DRY_RUN="1", **variables)
    assert status == 0
    flags = flags_of(shlex.split(out))
    assert flags["--per_device_train_batch_size"] == batch
    assert flags["--gradient_accumulation_steps"] == accumulation
    assert err.startswith(says) and bool(err) == bool(says)


# === Devices and launchers ===


@pytest.mark.parametrize(
    ("tools", "variables", "expected"),
    [
        (
            nvidia(8),
            {"CUDA_VISIBLE_DEVICES": "2,3"},
            "CUDA_VISIBLE_DEVICES=2,3 NCCL_DEBUG=WARN OMP_NUM_THREADS=32 deepspeed --include localhost:2,3",
        ),
        (
            nvidia(8),
            {"CUDA_VISIBLE_DEVICES": "4,5,6", "NUM_DEVICES": "2", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "8"},
            "CUDA_VISIBLE_DEVICES=4,5 deepspeed --include localhost:4,5",
        ),
        (
            nvidia(8),
            {"CUDA_VISIBLE_DEVICES": "GPU-a1,GPU-b2", "OMP_NUM_THREADS": "8"},
            "CUDA_VISIBLE_DEVICES=GPU-a1,GPU-b2 NCCL_DEBUG=WARN TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600"
            " torchrun --nproc_per_node 2 --standalone",
        ),
        (
            nvidia(8),
            {"LAUNCHER": "python", "PYTHON": "/my env/python"},
            "CUDA_VISIBLE_DEVICES=0 NCCL_DEBUG=WARN '/my env/python'",
        ),
        (
            nvidia(8),
            {"NUM_DEVICES": "4", "MASTER_PORT": "12345", "OMP_NUM_THREADS": "8"},
            "NCCL_DEBUG=WARN deepspeed --num_gpus 4 --master_port 12345",
        ),
        (
            nvidia(8),
            {"LAUNCHER": "torchrun", "NUM_NODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "10.0.0.1"},
            "NCCL_DEBUG=WARN OMP_NUM_THREADS=8 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 torchrun --nproc_per_node 8"
            " --nnodes 4 --node_rank 3 --master_addr 10.0.0.1 --master_port 29500",
        ),
        (
            nvidia(8),
            {"HOSTFILE": "tests/recipes/hostfile", "NUM_DEVICES": "4"},
            "NCCL_DEBUG=WARN OMP_NUM_THREADS=16 deepspeed --hostfile tests/recipes/hostfile --num_gpus 4",
        ),
        (
            amd(8),
            {"HIP_VISIBLE_DEVICES": "1,2", "OMP_NUM_THREADS": "8"},
            "HIP_VISIBLE_DEVICES=1,2 NCCL_DEBUG=WARN HSA_FORCE_FINE_GRAIN_PCIE=1 deepspeed --num_gpus 2",
        ),
        (
            amd(8),
            {"CUDA_VISIBLE_DEVICES": "6", "OMP_NUM_THREADS": "8"},
            "HIP_VISIBLE_DEVICES=6 NCCL_DEBUG=WARN HSA_FORCE_FINE_GRAIN_PCIE=1 deepspeed --num_gpus 1",
        ),
        (
            amd(8),
            {"ROCR_VISIBLE_DEVICES": "0,1,2,3", "OMP_NUM_THREADS": "8"},
            "NCCL_DEBUG=WARN HSA_FORCE_FINE_GRAIN_PCIE=1 deepspeed --num_gpus 4",
        ),
        (
            {"amd-smi": "printf 'gpu,gpu_bdf\\n0,a\\n1,b\\n'", "rocm-smi": "exit 1"},
            {"OMP_NUM_THREADS": "8"},
            "NCCL_DEBUG=WARN HSA_FORCE_FINE_GRAIN_PCIE=1 deepspeed --num_gpus 2",
        ),
        (
            {"nvidia-smi": "echo 'NVIDIA-SMI has failed'; exit 9", **amd(1)},
            {},
            "NCCL_DEBUG=WARN HSA_FORCE_FINE_GRAIN_PCIE=1 deepspeed --num_gpus 1",
        ),
        (
            {},
            {"NUM_DEVICES": "2", "DEEPSPEED_CONFIG": "none"},
            "OMP_NUM_THREADS=32 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 torchrun --nproc_per_node 2 --standalone",
        ),
        (
            {},
            {"LAUNCHER": "deepspeed", "NUM_DEVICES": "2", "OMP_NUM_THREADS": "1"},
            "DS_ACCELERATOR=cpu deepspeed --num_gpus 2",
        ),
        (nvidia(8), {"USE_CPU": "True"}, "python"),
        (nvidia(8), {"DEVICE": "cpu"}, "python"),
        ({}, {"USE_CPU": "False", "LAUNCHER": "python"}, "NCCL_DEBUG=WARN python"),
        ({}, {"DEVICE": "cuda", "NUM_DEVICES": "2", "OMP_NUM_THREADS": "1"}, "NCCL_DEBUG=WARN deepspeed --num_gpus 2"),
        (
            {**CLUSTER, **nvidia(4)},
            {**SLURM, "SLURM_NNODES": "1", "OMP_NUM_THREADS": "1"},
            "NCCL_DEBUG=WARN deepspeed --num_gpus 4",
        ),
        (
            {**CLUSTER, **nvidia(8)},
            {**SLURM, "SLURM_GPUS_ON_NODE": "4", "MASTER_ADDR": "head", "MASTER_PORT": "1"},
            "NCCL_DEBUG=WARN OMP_NUM_THREADS=24 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 srun --nodes 4 --ntasks 4"
            " --ntasks-per-node 1 --kill-on-bad-exit=1 --cpus-per-task 96 torchrun --nnodes 4 --nproc_per_node 4"
            " --rdzv_id 4711 --rdzv_backend c10d --rdzv_endpoint head:1",
        ),
    ],
)
def test_devices_decide_the_launcher(
    tools: dict[str, str], variables: dict[str, str], expected: str, tmp_path: Path
) -> None:
    shell = Shell(tmp_path / "bin", {**LAUNCHERS, **tools})
    words = shell.command(recipe("finetune"), **variables)
    assert shlex.join(before_script(words)) == expected
    flags = flags_of(words)
    cpu = ("python" in expected and "NCCL" not in expected) or "DEEPSPEED_CONFIG" in variables or "DS_ACC" in expected
    assert (flags.get("--use_cpu"), flags["--bf16"]) == (("True", "False") if cpu else (None, "True"))
    assert flags.get("--attn_implementation") == ("sdpa" if cpu else None)


def test_without_deepspeed_torchrun_trains_and_says_what_that_means(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", {"torchrun": "", **nvidia(2)})
    status, out, err = shell.run(recipe("finetune"), DRY_RUN="1")
    assert status == 0 and "--deepspeed" not in out
    assert "torchrun --nproc_per_node 2" in out and "every device holds all weights" in err
    shell = Shell(tmp_path / "bin", {"deepspeed": ""})
    assert flags_of(shell.command(recipe("finetune"), LAUNCHER="torchrun"))["--deepspeed"] == "./scripts/zero3.json"


def test_a_host_file_may_name_unequal_machines(tmp_path: Path, gpu8: Shell) -> None:
    (tmp_path / "hosts").write_text("a slots=4\n# spare: b slots=8\nc slots=12   # large\n\n")
    flags = flags_of(gpu8.command(recipe("finetune"), HOSTFILE=str(tmp_path / "hosts")))
    assert int(flags["--per_device_train_batch_size"]) * int(flags["--gradient_accumulation_steps"]) * 16 == 128


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"LAUNCHER": "slurm"}, "LAUNCHER is 'slurm'; accepted are auto, deepspeed, torchrun, srun, python."),
        ({"LAUNCHER": "srun"}, "needs a SLURM allocation"),
        ({"LAUNCHER": "python", "NUM_DEVICES": "8"}, "starts one process, but NUM_DEVICES is 8"),
        ({"LAUNCHER": "python", "DEEPSPEED_CONFIG": "scripts/zero2.json"}, "but LAUNCHER is python; use deepspeed"),
        ({"LAUNCHER": "deepspeed", "DEEPSPEED_CONFIG": "none"}, "use torchrun for plain data parallelism"),
        ({"LAUNCHER": "torchrun", "HOSTFILE": "tests/recipes/hostfile"}, "HOSTFILE is for the deepspeed launcher"),
        ({"LAUNCHER": "deepspeed", "CUDA_VISIBLE_DEVICES": "GPU-a"}, "deepspeed takes numbers only"),
        ({"DEEPSPEED_CONFIG": "zero9.json"}, "DEEPSPEED_CONFIG is 'zero9.json', which is not a file."),
        ({"DEVICE": "tpu"}, "DEVICE is 'tpu'; accepted are auto, cuda, rocm, cpu."),
        ({"DEVICE": "rocm"}, "no GPU can be counted here; set NUM_DEVICES."),
        ({"NUM_DEVICES": "16"}, "NUM_DEVICES is 16, but only 8 GPUs can be used here."),
        ({"NUM_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "0,1"}, "only 2 GPUs can be used here (0,1)."),
        ({"NUM_DEVICES": "all"}, "NUM_DEVICES is 'all'; it must be a whole number from 1 on."),
        ({"NUM_NODES": "2"}, "NODE_RANK is ''; it numbers the 2 machines from 0 to 1."),
        ({"NUM_NODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"}, "NODE_RANK is '2'"),
        ({"NUM_NODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR is missing; name the machine with NODE_RANK=0."),
        ({"HOSTFILE": "nowhere"}, "HOSTFILE is 'nowhere', which is not a file."),
        ({"HOSTFILE": "README.md"}, "must have a line 'name slots=GPUS' for each machine."),
        ({"BATCH_SIZE": "12"}, "a global batch of 128 only with one of 1, 2, 4, 8, 16 (or set ACCUMULATION"),
        ({"BATCH_SIZE": "0"}, "BATCH_SIZE is '0'; it must be a whole number from 1 on."),
        ({"NUM_DEVICES": "6"}, "a global batch of 128 cannot be shared equally by 6 devices"),
        ({"GLOBAL_BATCH_SIZE": "100"}, "cannot be shared equally by 8 devices; set GLOBAL_BATCH_SIZE to a multiple"),
        ({"ACCUMULATION": "3", "GLOBAL_BATCH_SIZE": "128"}, "make a global batch of 384, not 128"),
    ],
)
def test_wrong_settings_end_in_a_sentence(variables: dict[str, str], sentence: str, gpu8: Shell) -> None:
    status, out, err = gpu8.run(recipe("finetune"), **variables)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and sentence in err and err.count("\n") == 1


def test_an_allocation_with_gpus_never_trains_on_the_cpu(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", {**LAUNCHERS, **CLUSTER})
    status, _, err = shell.run(recipe("finetune"), DRY_RUN="1", SLURM_GPUS_PER_NODE="8", **SLURM)
    assert status == 2 and "set DEVICE to cuda or rocm" in err
    words = shell.command(recipe("finetune"), DEVICE="rocm", NUM_DEVICES="8", SLURM_GPUS_PER_NODE="8", **SLURM)
    assert "node-0:14711" in words  # 10000 and the job's number


# === How a run ends ===

RANK = """
trap 'echo told >>"$LOG"; sleep 0.3; printf "{}" >"$OUTPUT_DIR/$LEAVES"; exit 75' TERM
echo ready >>"$LOG"
while :; do sleep 0.05; done
"""
NODE = "trap 'echo hit >>\"$LOG\"; exit 1' TERM\nrank & wait $!\nexit $?"
FAKES = {  # deepspeed as it is: a process that starts a second one, which starts the ranks, and neither waits when told
    "rank": RANK,
    "node": NODE,
    "deepspeed": "trap 'echo hit >>\"$LOG\"; exit 1' TERM\nnode & wait $!",
    "torchrun": "trap 'kill -TERM $!; wait $!' TERM\nrank & wait $!\nexit 1",
    "python": f'exec {shlex.quote(shutil.which("bash") or "")} "$(dirname "$0")/rank"',
}


def assert_told(shell: Shell, number: signal.Signals, variables: dict[str, str], status: int) -> None:
    """A recipe that gets a signal while its rank runs passes it on once, and ends with the rank's status."""
    log = Path(variables["LOG"])
    process = shell.start(recipe("finetune"), **variables)
    deadline = time.monotonic() + 300
    while not log.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    assert log.read_text().split() == ["ready", "told"]


@pytest.mark.parametrize(
    ("number", "launcher", "leaves", "status"),
    [
        (signal.SIGTERM, "deepspeed", "note", 75),
        (signal.SIGUSR1, "deepspeed", "note", 75),
        (signal.SIGTERM, "torchrun", "preempted.json", 75),
        (signal.SIGUSR1, "torchrun", "preempted.json", 75),
        (signal.SIGTERM, "torchrun", "note", 1),
        (signal.SIGTERM, "python", "note", 75),
    ],
)
def test_a_signal_reaches_the_ranks_and_their_status_comes_out(
    number: signal.Signals, launcher: str, leaves: str, status: int, tmp_path: Path
) -> None:
    shell = Shell(tmp_path / "bin", {**nvidia(1), **FAKES})
    log = tmp_path / "log"
    variables = {"LAUNCHER": launcher, "LOG": str(log), "OUTPUT_DIR": str(tmp_path), "LEAVES": leaves}
    (tmp_path / "preempted.json").write_text("of an earlier run")
    assert_told(shell, number, variables, status)


def test_ctrl_c_ends_the_program_that_a_script_waits_for(tmp_path: Path) -> None:
    """Bash lets what it starts in the background ignore Ctrl-C."""
    program = "import time; print('ready', flush=True); time.sleep(600)"
    script = f'source scripts/lib/supervise.sh; supervise 0 "$0" -c {shlex.quote(program)}; echo "status $?"'
    process = subprocess.Popen(
        ["bash", "-c", script, sys.executable],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert out == "status 130\n"


def test_a_signal_to_the_whole_job_leaves_the_status_of_a_program_that_ends_at_once() -> None:
    """Bash loses the status of most of these: they end while its `wait` is interrupted."""
    program = "trap 'exit 75' TERM; echo ready; while :; do sleep 0.01; done"
    script = f'source scripts/lib/supervise.sh; supervise 0 bash -c {shlex.quote(program)}; echo "status $?"'
    options = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    jobs = [subprocess.Popen(["bash", "-c", script], start_new_session=True, **options) for _ in range(8)]
    for job in jobs:
        assert job.stdout is not None and job.stdout.readline() == "ready\n"
        os.killpg(job.pid, signal.SIGTERM)
    assert [job.communicate(timeout=300)[0] for job in jobs] == ["status 75\n"] * len(jobs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_ranks_of_a_slurm_job(number: signal.Signals, tmp_path: Path) -> None:
    """By scancel: srun kills all that it started when SIGTERM is sent to itself."""
    fakes = {
        "rank": RANK,
        "srun": 'rank & echo $! >"$OUTPUT_DIR/pid"\ntrap \'echo hit >>"$LOG"; kill -9 $!\' TERM USR1\nwait $!\nexit 1',
        "scancel": 'echo "$@" >>"$LOG.scancel"\nuntil [ -s "$OUTPUT_DIR/pid" ]; do sleep 0.05; done\n'
        'kill -TERM "$(cat "$OUTPUT_DIR/pid")"',
    }
    shell = Shell(tmp_path / "bin", {**nvidia(1), **CLUSTER, **fakes})
    log = tmp_path / "log"
    variables = {"LOG": str(log), "OUTPUT_DIR": str(tmp_path), "LEAVES": "preempted.json", **SLURM}
    assert_told(shell, number, variables, 75)
    assert (tmp_path / "log.scancel").read_text().split() == ["--signal=TERM", SLURM["SLURM_JOB_ID"]]


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "python"])
def test_the_status_of_a_failed_run_comes_out(launcher: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", {**nvidia(1), launcher: "exit 13"})
    assert shell.run(recipe("finetune"), LAUNCHER=launcher, OUTPUT_DIR=str(tmp_path))[0] == 13


@pytest.mark.slow
def test_deepspeed_itself_lets_the_ranks_save(tmp_path: Path) -> None:
    """With the real launcher, around a program that takes a while to save."""
    project = tmp_path / "project"
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, project / name, symlinks=True)
    (project / "llava/train").mkdir(parents=True)
    (project / "llava/train/train_mem.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "mine = pathlib.Path(os.environ['OUTPUT_DIR']) / os.environ['RANK']\n"
        "def save(*_):\n    time.sleep(1)\n    mine.write_text('saved')\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\nmine.write_text('ready')\ntime.sleep(600)\n"
    )
    tools = {"deepspeed": f'exec {shlex.quote(sys.executable)} -m deepspeed.launcher.runner "$@"'}
    shell = Shell(tmp_path / "bin", tools, root=project)
    (tmp_path / "out").mkdir()
    variables = {"LAUNCHER": "deepspeed", "DEVICE": "cpu", "NUM_DEVICES": "2", "OUTPUT_DIR": str(tmp_path / "out")}
    process = shell.start(recipe("finetune"), **variables)
    deadline = time.monotonic() + 400
    ranks = [tmp_path / "out" / rank for rank in "01"]
    while not all(rank.exists() for rank in ranks) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err[-2000:]
    assert [rank.read_text() for rank in ranks] == ["saved", "saved"]
