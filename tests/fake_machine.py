"""Machines that exist only as the tools that describe them: scripts run on a path that holds those and nothing else."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = [
    "awk",
    "basename",
    "bash",
    "cat",
    "cksum",
    "cut",
    "date",
    "dirname",
    "env",
    "grep",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "sleep",
    "touch",
    "tr",
    "wc",
]
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "node-[0-3]", "SLURM_CPUS_ON_NODE": "96"}


@dataclass(frozen=True)
class Machine:
    """A machine as its tools describe it."""

    tools: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


def nvidia(count: int) -> dict[str, str]:
    return {"nvidia-smi": "\n".join(f"echo 'GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i})'" for i in range(count))}


def amd(count: int) -> dict[str, str]:
    return {"rocm-smi": "echo device,GUID\n" + "\n".join(f"echo card{i},{1000 + i}" for i in range(count))}


LAUNCHERS = {"deepspeed": "exit 3", "torchrun": "exit 3"}
CLUSTER = {"srun": "exit 3", "scontrol": "printf 'node-%s\\n' 0 1 2 3"}
MACHINES = {
    "cpu": Machine(LAUNCHERS),
    "gpu": Machine({**LAUNCHERS, **nvidia(1)}),
    "gpu8": Machine({**LAUNCHERS, **nvidia(8)}),
    "rocm8": Machine({**LAUNCHERS, **amd(8)}),
    "hostfile-4x8": Machine({**LAUNCHERS, **nvidia(8)}, {"HOSTFILE": "tests/recipes/hostfile"}),
    "slurm-4x8": Machine({**LAUNCHERS, **CLUSTER, **nvidia(8)}, SLURM),
}


class Shell:
    """Runs scripts with a path of its own, on which the tools of one machine stand."""

    def __init__(self, folder: Path, tools: dict[str, str], root: Path = ROOT) -> None:
        self.folder, self.root = folder, root
        folder.mkdir(parents=True, exist_ok=True)
        for name in NEEDED:
            found = shutil.which(name)
            assert found is not None, name
            if not (folder / name).exists():
                (folder / name).symlink_to(found)
        for name, body in {"nproc": "echo 64", **tools}.items():
            (folder / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
            (folder / name).chmod(0o755)

    def start(self, script: str, *words: str, cwd: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        environment = {"PATH": str(self.folder), "HOME": str(self.folder), **variables}
        command = [str(self.folder / "bash"), str(self.root / script), *words]
        return subprocess.Popen(
            command, cwd=cwd or ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, script: str, *words: str, cwd: Path | None = None, **variables: str) -> tuple[int, str, str]:
        """Status, output and errors."""
        process = self.start(script, *words, cwd=cwd, **variables)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def command(self, script: str, *words: str, cwd: Path | None = None, **variables: str) -> list[str]:
        """The words that a recipe would run, variables in front."""
        status, out, err = self.run(script, *words, cwd=cwd, DRY_RUN="1", **variables)
        assert status == 0, err
        (line,) = out.splitlines()
        return shlex.split(line)


def recipe(name: str) -> str:
    return f"scripts/v1_5/{name}.sh"


def flags_of(words: list[str]) -> dict[str, str]:
    """Flags of the trainer; the last one counts."""
    words = words[words.index("llava/train/train_mem.py") + 1 :]
    assert len(words) % 2 == 0 and all(word.startswith("--") for word in words[::2])
    return dict(zip(words[::2], words[1::2], strict=True))


def before_script(words: list[str]) -> list[str]:
    """The launcher's words, variables included."""
    return words[: words.index("llava/train/train_mem.py")]
