"""No value of a setting runs as code or ends in a message of bash: it is refused in words, or used as it stands."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from fake_machine import LAUNCHERS, MACHINES, ROOT, Machine, Shell, nvidia, recipe

RUNS = "touch ran; printf 8"
"""What the values below would have bash do, if it took them for more than text."""
HOSTILE = (
    f"a[$({RUNS})]",
    f"$({RUNS})",
    f"`{RUNS}`",
    f"1; {RUNS}",
    f"PATH[$({RUNS})0]+1",
    f"x=1,y=a[$({RUNS})]",
    "a b",
    " 8",
    "8 ",
    "8\n",
    "8\n9",
    "'",
    '"',
    "\\",
    "-8",
    "--help",
    "-n",
    "*",
    "/*",
    "{1,2}",
    "~",
    "~root",
    "!!",
    "$HOME",
    "a[0]",
    "08",
    "010",
    "+5",
    "1e3",
    "0x10",
    "1.5",
    "9" * 30,
    "18446744073709551617",
    "٨",
    "８",
    "²",
    "\x1b[2J",
    "\t",
    "é",
    "|",
    "&",
    "0",
    "-1",
    "nan",
    "none",
    "RANDOM",
    "SHLVL",
    "a=b",
    "../..",
    "/",
    ".",
    "..",
    "//x",
    "#",
    "%s%n",
    "x" * 5000,
)

# Ways through the scripts that reach every setting; a new setting is found by its name in the scripts themselves.
FINETUNE = (recipe("finetune_qlora"),)
WAYS: dict[str, tuple[tuple[str, ...], Machine]] = {
    "processes": (
        FINETUNE,
        Machine(LAUNCHERS, {"NUM_DEVICES": "2", "ACCUMULATION": "2", "EVAL_DATA_PATH": "held.json"}),
    ),
    "ROCm": (FINETUNE, MACHINES["rocm8"]),
    "machines": (
        FINETUNE,
        Machine({**LAUNCHERS, **nvidia(8)}, {"NUM_NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a"}),
    ),
    "host file": (FINETUNE, MACHINES["hostfile-4x8"]),
    "SLURM": (FINETUNE, MACHINES["slurm-4x8"]),
    "evaluation": (("scripts/v1_5/eval/mme.sh",), MACHINES["gpu8"]),
    "reproduction": (("scripts/reproduce.sh", "duet-64"), MACHINES["gpu"]),
    "quickstart": (("scripts/quickstart.sh",), MACHINES["cpu"]),
    "study": (("scripts/quickstart.sh", "--study"), MACHINES["cpu"]),
    "video study": (("scripts/quickstart.sh", "--video-study"), MACHINES["cpu"]),
    "checks": (("scripts/test.sh",), Machine({"find": "echo scripts/test.sh"})),
}
NOT_SET = {"PATH", "PWD", "DRY_RUN", "SECONDS", "BASH_SOURCE"}
NOTES = ("No GPU was found", "The global batch is")


def settings() -> list[str]:
    """The variables that the scripts read or document."""
    texts = [path.read_text() for path in sorted((ROOT / "scripts").rglob("*.sh"))]
    read = {name for text in texts for name in re.findall(r"\$\{?([A-Z][A-Z0-9_]+)", text)}
    documented = {
        name
        for text in texts
        for line in re.findall(r"^#   ([A-Z][A-Z0-9_=1, ]+)", text, re.MULTILINE)
        for name in re.findall(r"[A-Z][A-Z0-9_]+", line)
    }
    return sorted((read | documented) - NOT_SET)


def outcome(shell: Shell, way: str, values: dict[str, str]) -> tuple[bool, str]:
    """Run a way with these settings, dry: whether they are taken, and what is said. A value must never be run."""
    words, machine = WAYS[way]
    folder = shell.folder.parent
    status, out, err = shell.run(*words, cwd=folder, **{"DRY_RUN": "1", **machine.variables, **values})
    assert not (ROOT / "ran").exists() and not (folder / "ran").exists(), (way, values)
    assert not re.search(r"\.sh: line \d+:|^/", err), (way, values, err)  # bash itself, which names its file
    if status == 0:
        assert all(line.startswith("#") or shlex.split(line) for line in out.splitlines())
        return True, err
    said = [line for line in err.splitlines() if not line.startswith(NOTES) and "leaves no GPU: this" not in line]
    assert (status, out, len(said)) == (2, "", 1) and said[0].startswith("error: "), (way, values, out, err)
    return False, said[0]


def taken_as_text(shell: Shell, way: str, value: str) -> tuple[set[str], set[str]]:
    """The settings that a way takes with this value, and those it refuses; each refusal names its setting."""
    names, refused = set(settings()), set()
    while True:
        taken, said = outcome(shell, way, dict.fromkeys(names - refused, value))
        if taken:
            return names - refused, refused
        if "would not be read as it stands" in said:
            return set(), refused  # by shells on other machines; this is looked at last
        named = {name for name in names - refused if re.search(rf"\b{name}\b", said)}
        named = named or {name for name in names - refused if name.startswith("SLURM_") and "SLURM allocation" in said}
        assert named, said
        refused |= named


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_no_value_of_a_setting_is_code(way: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path / "bin", WAYS[way][1].tools)
    taken, refused = taken_as_text(shell, way, HOSTILE[0])
    assert way != "SLURM" or {"SLURM_JOB_ID", "SLURM_CPUS_ON_NODE", "BATCH_SIZE", "MASTER_PORT"} <= refused
    for value in HOSTILE[1::3]:
        outcome(shell, way, dict.fromkeys(taken, value))
    offset = 9 * list(WAYS).index(way)  # every way another part of the values
    for number, name in enumerate(sorted(refused)):
        outcome(shell, way, {name: HOSTILE[(offset + number) % len(HOSTILE)]})


TOOLS = {
    "nproc": ("processes", {}),
    "nvidia-smi": ("host file", {}),
    "rocm-smi": ("ROCm", {}),
    "amd-smi": ("ROCm", {}),
    "scontrol": ("SLURM", {}),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_no_output_of_a_tool_is_code(tool: str, tmp_path: Path) -> None:
    way, values = TOOLS[tool]
    for number, text in enumerate((*HOSTILE[:8], "9" * 30, "08", "", "-oProxyCommand=touch ran")):
        printed = "\n".join([text, f"GPU {text}", f"card{text}", text])
        (tmp_path / f"out{number}").write_text(printed)
        shell = Shell(tmp_path / "bin", {**WAYS[way][1].tools, tool: f"cat '{tmp_path}/out{number}'"})
        outcome(shell, way, values)


def test_no_line_of_a_host_file_is_code(tmp_path: Path) -> None:
    """DeepSpeed gives the names to ssh and to shells on other machines."""
    shell = Shell(tmp_path / "bin", WAYS["host file"][1].tools)
    hosts = tmp_path / "-hosts"
    names = (*HOSTILE[:7], "-oProxyCommand=touch", "a;b", "*", "&")
    lines = [f"{name} slots=8" for name in names] + [
        f"a slots={text}" for text in (*HOSTILE[:8], "08", "9" * 30, "0", "")
    ]
    for line in lines:
        hosts.write_text(f"good slots=8\n{line}\n")
        taken, said = outcome(shell, "host file", {"HOSTFILE": str(hosts)})
        assert not taken, (line, said)
    hosts.write_text("good slots=8\n  user@10.0.0.1 slots=4")
    assert outcome(shell, "host file", {"HOSTFILE": str(hosts), "GLOBAL_BATCH_SIZE": "96"}) == (True, "")


@pytest.mark.slow
def test_what_shells_on_other_machines_would_run_is_refused(tmp_path: Path) -> None:
    """With a host file, DeepSpeed gives the command and some variables to them without quoting."""
    shell = Shell(tmp_path / "bin", WAYS["host file"][1].tools)
    for value in (*HOSTILE[:6], "it's", "a|b", "~/data", "two\nlines"):
        for name in ("DATA_PATH", "RUN_NAME", "NCCL_DEBUG", "PYTHONPATH"):
            taken, said = outcome(shell, "host file", {name: value})
            assert not taken and "as it stands" in said, (name, value)
            assert outcome(shell, "ROCm", {name: value})[0], "here no shell reads it"
    assert outcome(shell, "host file", {"DATA_PATH": "/my data/é.json", "NCCL_DEBUG": "INFO"})[0]


def main() -> None:
    """Every value for every setting on every way, one by one, with the counts."""
    for way, (_, machine) in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            shell = Shell(Path(folder) / "bin", machine.tools)
            counts = Counter(outcome(shell, way, {name: value})[0] for value in HOSTILE for name in settings())
        sys.stdout.write(f"{way}: {counts[True]} taken as text, {counts[False]} refused in a sentence\n")


if __name__ == "__main__":
    main()
