"""The container files: their rules, and the steps of the one for CPUs, run in a folder instead of an image."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EXTRAS = ("cuda", "rocm", "cpu")


@dataclass
class Stage:
    """A stage of a container file: what it is made from, and its instructions in order."""

    base: str
    name: str | None
    steps: list[tuple[str, str]] = field(default_factory=list)


def read(file: Path) -> tuple[dict[str, str], list[Stage]]:
    """Arguments in front of the first stage, and the stages."""
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(None, 1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name or None))
        elif stages:
            stages[-1].steps.append((word, rest))
        else:
            name, _, value = rest.partition("=")
            arguments[name] = value
    return arguments, stages


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert sorted(file.stem for file in FILES) == sorted(EXTRAS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and not found.stdout, found.stdout + found.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_image_is_pinned_holds_no_more_than_it_needs_and_does_not_run_as_root(file: Path) -> None:
    arguments, stages = read(file)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for stage in stages:
        base = re.sub(r"\$\{(\w+)\}", lambda name: arguments[name[1]], stage.base)
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", base), f"{base} is not a pinned image"
        for word, rest in stage.steps:
            assert word in ("ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "EXPOSE", "CMD"), word
            if word == "COPY" and not rest.startswith("--from"):
                for name in rest.split()[:-1]:
                    assert (ROOT / name).exists() and f"!{name}" in ignored, name
            for install in re.findall(r"pip install ([^&;]*)", rest):
                assert "--constraint constraints.txt" in install or "==" in install, install
    users = [rest for word, rest in stages[-1].steps if word == "USER"]
    assert users and users[-1] not in ("0", "root")


def test_every_image_listens_and_starts_alike() -> None:
    ends = [[step for step in read(file)[1][-1].steps if step[0] in ("EXPOSE", "CMD", "USER")] for file in FILES]
    assert {tuple(end[-3:]) for end in ends} == {tuple(ends[0][-3:])}


@dataclass
class Image:
    """A folder in place of an image's root: absolute paths of the container file lie in it."""

    root: Path
    folder: str = "/"
    environment: dict[str, str] = field(default_factory=dict)

    def inside(self, text: str) -> str:
        """The text, with the paths of an image that steps write to in the folder."""
        return re.sub(r"(?<![\w.])/(opt|var/lib|home)/", lambda top: f"{self.root}/{top[1]}/", text)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a step in bash, with stand-ins for what only root of an image may do."""
        environment = os.environ | self.environment
        environment["PATH"] = f"{self.root / 'stand-ins'}{os.pathsep}{environment['PATH']}"
        environment.pop("PYTHONPATH", None)
        return subprocess.run(
            ["bash", "-ec", self.inside(command)],
            cwd=self.inside(f"{self.folder}/"),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def take_versions_here(self) -> None:
        """Pin what is installed here: the checks are run with other versions than the image has, too."""
        file = Path(self.inside(f"{self.folder}/")) / "constraints.txt"
        pins = [line.partition("==") for line in file.read_text().splitlines()]
        here = {name.lower().replace("_", "-"): version for name, version in _installed()}
        file.write_text(
            "".join(f"{name}=={here.get(name.lower().replace('_', '-'), pin)}\n" for name, _, pin in pins if pin)
        )

    def step(self, word: str, rest: str) -> None:
        """Carry out one instruction."""
        if word == "WORKDIR":
            self.folder = rest
            Path(self.inside(f"{rest}/")).mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", rest):
                self.environment[name] = self.inside(value).replace("$PATH", os.environ["PATH"])
        elif word == "ARG":
            name, _, value = rest.partition("=")
            self.environment[name] = value
        elif word == "COPY" and not rest.startswith("--from"):  # stages share the folder here
            *sources, target = rest.split()
            for source in sources:
                to = Path(self.inside(f"{self.folder}/")) / target
                if (ROOT / source).is_dir():
                    left_out = ["__pycache__", *(["output", "data"] if source == "playground" else [])]
                    shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns(*left_out))
                else:
                    shutil.copy(ROOT / source, to)
        elif word == "RUN":
            done = self.run(rest)
            assert done.returncode == 0, f"{rest}\n{done.stdout}\n{done.stderr}"


def _installed() -> list[tuple[str, str]]:
    return [(one.metadata["Name"], one.version) for one in importlib.metadata.distributions()]


def test_the_steps_of_the_image_for_cpus_make_something_that_runs(tmp_path: Path) -> None:
    """Packages are those of this environment: pip finds what it wants there, and nothing is fetched."""
    stand_ins = tmp_path / "stand-ins"
    stand_ins.mkdir()
    for name in ("apt-get", "useradd", "chown", "rm"):
        (stand_ins / name).write_text('#!/bin/sh\necho "$0 $@" >> "$(dirname "$0")/called"\n')
        (stand_ins / name).chmod(0o755)
    image = Image(tmp_path, environment={"PIP_NO_INDEX": "1"})
    pip_here = importlib.util.find_spec("pip")  # importing it would change what setuptools does in this process
    assert pip_here is not None and pip_here.origin is not None
    _, stages = read(ROOT / "docker" / "cpu.Dockerfile")
    for stage in stages:
        for word, rest in stage.steps:
            if word == "RUN" and "venv" in rest:
                made = image.run(f"{rest} --without-pip".replace("python", sys.executable, 1))
                assert made.returncode == 0, made.stderr
                packages = next((tmp_path / "opt" / "venv" / "lib").glob("python*/site-packages"))
                (packages / "borrowed.pth").write_text(str(Path(pip_here.origin).parents[1]))
                program = tmp_path / "opt" / "venv" / "bin" / "pip"
                program.write_text('#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n')
                program.chmod(0o755)
            else:
                image.step(word, rest)
            if (word, rest) == ("COPY", "constraints.txt ./"):
                image.take_versions_here()
    called = (stand_ins / "called").read_text()
    assert "apt-get install" in called and "useradd" in called
    place = image.run("python -c 'import llava; print(llava.__file__)'")
    assert place.stdout.strip() == f"{tmp_path}/opt/duet-llava/llava/__init__.py", place.stderr
    table = image.run("python -m llava.compression.schedule --preset duet-192")
    assert table.returncode == 0 and "192" in table.stdout, table.stderr
    assert (tmp_path / "opt" / "duet-llava" / "checkpoints").is_dir()
