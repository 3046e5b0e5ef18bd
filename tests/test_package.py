"""The wheel: presets inside, nothing asked for that is optional."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of a wheel, built without network from a copy of the sources."""
    source, wheels, content = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "content"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("llava", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(wheels)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = wheels.glob("duet_llava-*.whl")
    zipfile.ZipFile(wheel).extractall(content)
    return content


def test_presets_are_in_the_wheel_once(unpacked: Path) -> None:
    ours = {path.name: path.read_bytes() for path in (ROOT / "configs" / "compression").glob("*.yaml")}
    packed = {path.name: path.read_bytes() for path in (unpacked / "llava" / "compression" / "presets").iterdir()}
    assert packed == ours
    assert (unpacked / "llava" / "py.typed").is_file()


def test_every_table_beside_the_modules_is_in_the_wheel(unpacked: Path) -> None:
    tables = [
        path.relative_to(ROOT) for kind in ("yaml", "json", "css", "js") for path in (ROOT / "llava").rglob(f"*.{kind}")
    ]
    assert tables and [path for path in tables if not (unpacked / path).is_file()] == []


def test_an_installed_wheel_reads_its_own_presets(unpacked: Path, tmp_path: Path) -> None:
    program = (
        "import llava.compression.config as config\n"
        "print(config.__file__)\nprint(config.CompressionConfig.from_preset('duet-192').v2v.dominant)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(unpacked)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    origin, dominant = done.stdout.split()
    assert Path(origin).is_relative_to(unpacked)
    assert dominant == "300"


def test_extras_exist_and_nobody_asks_for_torchvision(unpacked: Path) -> None:
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8").split("\n\n")[0]
    extras = set(re.findall(r"^Provides-Extra: (\S+)", text, re.MULTILINE))
    assert {"train", "cuda", "rocm", "eval", "serve", "dev"} <= extras
    assert "torchvision" not in text
    assert "License-Expression: Apache-2.0" in text


def test_every_requirement_that_is_tested_has_a_pin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for name in ("train", "quickstart", "dev") for one in extras[name])]
    names = {re.match(r"[\w-]+", requirement).group().lower() for requirement in asked} - {"duet-llava"}
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in pins if "==" in line}
    assert names <= pinned
