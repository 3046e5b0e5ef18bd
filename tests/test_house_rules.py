"""Rules of CONTRIBUTING.md that a program can check."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for folder in ("llava", "playground", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if "output" not in path.parts
)
LARGEST = 500_000  # bytes of a tracked file
LARGE_ON_PURPOSE = ("playground/assets/", "tests/golden/")
PACKED = (
    ".whl",
    ".egg",
    ".jar",
    ".zip",
    ".7z",
    ".rar",
    ".tar",
    ".tgz",
    ".tbz2",
    ".txz",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".deb",
    ".rpm",
)


def complaints(rule: Callable[[Path, ast.Module], Iterator[str]]) -> list[str]:
    """What a rule finds in all modules, each with the module's path."""
    return [
        f"{path.relative_to(ROOT)}: {found}"
        for path in SOURCES
        for found in rule(path, ast.parse(path.read_text(encoding="utf-8")))
    ]


def long_code(path: Path, tree: ast.Module) -> Iterator[str]:
    """A file from 400 lines on, a function from 50 lines on without its docstring."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines >= 400:
        yield f"{lines} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
            length = (node.end_lineno or start) - start
            if length >= 50:
                yield f"{node.name} has {length} lines"


def unsafe_loads(_: Path, tree: ast.Module) -> Iterator[str]:
    """`torch.load` that may run code of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
            if not safe:
                yield f"line {node.lineno} loads without weights_only=True"


def swallowed_errors(_: Path, tree: ast.Module) -> Iterator[str]:
    """An except without a name, or one that passes over everything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            if node.type is None:
                yield f"line {node.lineno} does not say which errors"
            elif silent and ast.unparse(node.type) in ("Exception", "BaseException", "ImportError"):
                yield f"line {node.lineno} passes over every error"


def test_the_method_stays_short_enough_to_be_read() -> None:
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "llava/compression").rglob("*.py")}
    assert sum(lines.values()) < 1000, lines


@pytest.mark.parametrize("rule", [long_code, unsafe_loads, swallowed_errors], ids=lambda rule: rule.__name__)
def test_no_module_breaks_a_rule(rule: Callable[[Path, ast.Module], Iterator[str]]) -> None:
    """Weights are never unpickled; a masked ImportError hides why an upgrade fails (fault 10)."""
    assert complaints(rule) == []


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (long_code, "def long():\n" + "    a = 1\n" * 51),
        (unsafe_loads, "import torch\ntorch.load('x', weights_only=False)\n"),
        (swallowed_errors, "try:\n    import x\nexcept ImportError:\n    pass\n"),
        (swallowed_errors, "try:\n    x()\nexcept:\n    raise\n"),
    ],
)
def test_a_broken_rule_is_noticed(
    rule: Callable[[Path, ast.Module], Iterator[str]], source: str, tmp_path: Path
) -> None:
    (tmp_path / "module.py").write_text(source)
    assert list(rule(tmp_path / "module.py", ast.parse(source)))


FORMATTER_COMMENT = re.compile(r"#\s*(?:fmt:\s*(?:off|on|skip)|yapf:\s*(?:disable|enable))", re.IGNORECASE)


def hand_formatted(source: str) -> list[int]:
    """Lines with a comment that keeps the formatter away."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [one.start[0] for one in tokens if one.type == tokenize.COMMENT and FORMATTER_COMMENT.search(one.string)]


def test_the_formatter_decides_about_every_line() -> None:
    paths = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): hand_formatted(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("comment", ["# fmt: skip", "# fmt:off", "# type: ignore  # fmt: skip", "# yapf: disable"])
def test_a_comment_that_keeps_the_formatter_away_would_be_noticed(comment: str) -> None:
    assert hand_formatted(f"x = (\n    1,  2,\n)  {comment}\n") == [3]
    assert hand_formatted(f"x = '{comment}'\n") == []


def test_no_two_modules_and_no_two_classes_have_one_name() -> None:
    """But for LLaVA's three builders, the face of the chat, and a family's two halves; `bench` has words of its own."""
    modules = [path for path in SOURCES if path.is_relative_to(ROOT / "llava") and path.name[:2] != "__"]
    modules = [path for path in modules if not path.is_relative_to(ROOT / "llava" / "bench")]
    names = Counter(path.name for path in modules if path.parent.name != "families")
    assert {name for name, count in names.items() if count > 1} <= {"builder.py", "chat.py"}
    nodes = (node for path in modules for node in ast.parse(path.read_text(encoding="utf-8")).body)
    classes = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef) and node.name[0] != "_")
    assert {name for name, count in classes.items() if count > 1} <= {"DuetLlava"}, "users type it in two harnesses"


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("compression", "import llava.model"),
        ("compression", "import transformers"),
        ("compression", "import llava.common.yaml_files"),
        ("data", "import llava.train"),
        ("serve", "from llava.eval.run import main"),
        ("eval", "import llava.doctor"),
        ("eval/benchmarks", "from llava.eval.runner import settings"),
        ("eval/judging", "import llava.eval.benchmarks"),
        ("eval/tables", "import llava.eval.runner.jobs"),
    ],
)
def test_an_import_upwards_or_sideways_is_noticed(room: str, statement: str, tmp_path: Path) -> None:
    """By the contracts of pyproject.toml, also inside a function."""
    shutil.copytree(ROOT / "llava", tmp_path / "llava", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "llava" / room / "upwards.py").write_text(f"def anywhere():\n    {statement}\n")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and f"llava.{room}.upwards".replace("/", ".") in done.stdout, done.stdout + done.stderr


def pins(name: str) -> dict[str, Requirement]:
    """What a constraints file holds, by name of the package."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return {requirement.name: requirement for requirement in map(Requirement, filter(None, lines))}


def pinned(requirement: Requirement) -> str:
    (version,) = requirement.specifier
    assert version.operator == "==", str(requirement)
    return version.version


def test_fault_10_the_tested_versions_are_the_ones_that_are_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    tested, newest = pins("constraints.txt"), pins("constraints-newest.txt")
    for requirement in map(Requirement, asked):
        for requirement_tested in (tested.get(requirement.name), newest.get(requirement.name)):
            if requirement_tested is not None:
                assert requirement.specifier.contains(pinned(requirement_tested)), str(requirement)
    for name, requirement in newest.items():
        assert Version(pinned(requirement)) > Version(pinned(tested[name])), "else it need not be named"


def test_transformers_is_bound_to_the_minor_releases_that_are_tested() -> None:
    """Its internals are used: a minor release may change them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = next(known for known in map(Requirement, project["dependencies"]) if known.name == "transformers")
    tested = {
        Version(pinned(pins(name)["transformers"])).release[:2]
        for name in ("constraints.txt", "constraints-newest.txt")
    }
    allowed = {(5, minor) for minor in range(60) if asked.specifier.contains(f"5.{minor}.0")}
    assert allowed == tested and not asked.specifier.contains("6.0")


@pytest.mark.parametrize("newest", ["", "0", "1"])
def test_the_checks_can_be_run_with_either_set_of_versions(newest: str) -> None:
    command = ["bash", "-c", "source scripts/lib/setup.sh; pins"]
    printed = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NEWEST": newest}, capture_output=True, text=True, check=True
    ).stdout
    lines = {line for line in printed.splitlines() if line and not line.startswith("#")}
    expected = pins("constraints.txt") | (pins("constraints-newest.txt") if newest == "1" else {})
    assert lines == {str(requirement) for requirement in expected.values()}


def unwanted(root: Path) -> list[str]:
    """Tracked files of a checkout that do not belong there, each with the reason; links are not followed."""
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, check=True).stdout
    found = []
    for name in filter(None, listed.decode().split("\0")):
        path = root / name
        if name.startswith(LARGE_ON_PURPOSE) or path.is_symlink() or not path.is_file():
            continue
        if name.lower().endswith(PACKED):
            found.append(f"{name} is a package or an archive")
        elif path.stat().st_size > LARGEST:
            found.append(f"{name} has {path.stat().st_size} bytes, more than {LARGEST}")
    return found


def test_no_wheel_archive_or_large_file_is_tracked() -> None:
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse"], capture_output=True).returncode:
        pytest.skip("this is no git checkout, so nothing is tracked")
    assert unwanted(ROOT) == []


def test_a_downloaded_wheel_or_a_large_file_would_be_noticed(tmp_path: Path) -> None:
    for name, size in {
        "pillow-12.0-py3-none-any.whl": 10,
        "docs/Old.ZIP": 10,
        "llava/weights.bin": LARGEST + 1,
        "llava/big.txt": LARGEST,
        "playground/assets/model.safetensors": LARGEST + 1,
        "tests/golden/a/inputs.safetensors": LARGEST + 1,
        "tests/golden.bin": LARGEST + 1,
        'räksmörgås "x".tar.gz': 1,
        "not tracked.whl": 10,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0" * size)
    (tmp_path / "removed.whl").write_bytes(b"0")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "-f", ".", ":!not tracked.whl"], check=True)
    (tmp_path / "removed.whl").unlink()
    assert sorted(unwanted(tmp_path)) == [
        "docs/Old.ZIP is a package or an archive",
        f"llava/weights.bin has {LARGEST + 1} bytes, more than {LARGEST}",
        "pillow-12.0-py3-none-any.whl is a package or an archive",
        'räksmörgås "x".tar.gz is a package or an archive',
        f"tests/golden.bin has {LARGEST + 1} bytes, more than {LARGEST}",
    ]
