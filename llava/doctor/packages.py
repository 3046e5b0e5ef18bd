"""Installed packages beside what the project asks for, and whether they can be imported at all."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from llava.cost.machine import version_of

PROJECT = "duet-llava"
IMPORT_SECONDS = 180
_CHECKOUT = Path(__file__).resolve().parents[2]
# Extras whose packages training uses; the others serve other programs.
_EXTRAS = ("", "train", "cuda")


@dataclass(frozen=True)
class Package:
    """A package that the project names.

    Attributes:
        name: name on the package index.
        extra: the project's extra that asks for it; empty for what is always needed.
        installed: version, None where it is not.
        accepted: range, such as `>=5.23,<5.25`.
        tested: the version that constraints.txt pins, where it is at hand.
    """

    name: str
    extra: str
    installed: str | None
    accepted: str
    tested: str | None

    @property
    def outside(self) -> bool:
        """Whether it is installed in a version that the project does not accept."""
        if self.installed is None or not self.accepted:
            return False
        try:
            version = Version(self.installed)
        except InvalidVersion:
            return True
        return not Requirement(f"x{self.accepted}").specifier.contains(version, prereleases=True)


@dataclass(frozen=True)
class Imports:
    """Results of importing packages in a process of its own.

    Attributes:
        errors: why a module cannot be imported although it is installed, by its name.
        operations: whether each operation of DeepSpeed can be used or built here, by name.
        problem: why nothing could be tried.
    """

    errors: dict[str, str]
    operations: dict[str, bool]
    problem: str | None = None


def read_packages() -> tuple[Package, ...]:
    """What training needs, always needed packages first; torchvision is added where it is installed."""
    pins = read_pins(_CHECKOUT / "constraints.txt")
    found: dict[str, Package] = {}
    for extra, requirement in _requirements():
        if requirement.name not in found and extra in _EXTRAS:
            accepted = str(requirement.specifier)
            name = requirement.name
            found[name] = Package(name, extra, version_of(name), accepted, pins.get(_plain(name)))
    vision = version_of("torchvision")
    if vision is not None:
        found["torchvision"] = Package("torchvision", "not asked for", vision, "", None)
    return tuple(found.values())


def read_pins(path: Path) -> dict[str, str]:
    """Versions of a constraints file by plain name; empty without the file."""
    if not path.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {_plain(name): version for name, version in pairs}


def try_imports() -> Imports:
    """Import what training imports, in a process of its own: see `llava.doctor.imports`."""
    command = [sys.executable, "-m", "llava.doctor.imports"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)
        marked = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if marked:
            return Imports(**json.loads(marked[-1]))
    except subprocess.TimeoutExpired:
        return Imports({}, {}, f"Importing the packages took more than {IMPORT_SECONDS} s and was given up.")
    except (OSError, ValueError) as error:
        return Imports({}, {}, str(error))
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return Imports({}, {}, f"Importing the packages ended the process (exit status {done.returncode}): {last}")


def _requirements() -> list[tuple[str, Requirement]]:
    """Requirements with the extra that asks for each: of the checkout this file is in, else as installed."""
    path = _CHECKOUT / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"] if path.is_file() else {}
    if project.get("name") == PROJECT:
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        return [(extra, Requirement(line)) for extra, lines in groups.items() for line in lines]
    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        return []
    extras = (re.search(r"extra == ['\"]([\w-]+)['\"]", line) for line in lines)
    return [(match.group(1) if match else "", Requirement(line)) for match, line in zip(extras, lines, strict=True)]


def _plain(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()
