"""docs/evaluation.md: its commands parse, its Python runs, and what it names exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from warm_python import run_program

from llava.eval import data, run, table
from llava.eval.benchmarks import NAMES, get_benchmark
from llava.eval.benchmarks.base import JudgedBenchmark
from llava.eval.judging import chat_api, judge

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def commands(program: str) -> list[list[str]]:
    """Words of the shell commands that begin with a program, without it."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
    found = [line.removeprefix(program) for line in text.splitlines() if line.startswith(program)]
    assert found, program
    return [shlex.split(line) for line in found]


def test_commands_parse() -> None:
    for words in commands("python -m llava.eval.run "):
        options = run.parse(words)
        assert options.num_gpus == 8 and options.output == "results"
    for words in commands("python -m llava.eval.data "):
        data._parser().parse_args(words)
    for words in commands("python -m llava.eval.table "):
        assert table._parser().parse_args(words).paper


def test_the_script_makes_a_command() -> None:
    (words,) = commands("bash scripts/v1_5/eval/pope.sh ")
    command = ["bash", "scripts/v1_5/eval/pope.sh", *words]
    said = subprocess.run(
        command, cwd=ROOT, env={"DRY_RUN": "1", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert "llava.eval.run --model-path CHECKPOINT --benchmarks pope" in said.stdout
    assert said.stdout.split()[-2:] == ["--compression", "duet-64"]


def test_the_python_runs() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    done = run_program(["-c", code], cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_described(name: str) -> None:
    assert f"`{name}`" in TEXT
    row = next(line for line in TEXT.splitlines() if line.startswith("|") and f"`{name}`" in line)
    assert ("a judge" in row) == isinstance(get_benchmark(name), JudgedBenchmark)


def test_longer_answers_are_told() -> None:
    (named,) = re.findall(r"at most 128 new tokens \(1024 for (.*?) and where a\s+judge reads them\)", TEXT, re.DOTALL)
    longer = [name for name in NAMES if get_benchmark(name).max_new_tokens == 1024]
    judged = [name for name in NAMES if isinstance(get_benchmark(name), JudgedBenchmark)]
    assert set(judged) <= set(longer) and re.findall(r"`(\w+)`", named) == [n for n in longer if n not in judged]
    assert {get_benchmark(name).max_new_tokens for name in NAMES if name not in longer} == {128}


def test_what_is_named_exists() -> None:
    for module in re.findall(r"`(?:python -m )?(llava\.eval\.\w+)`", TEXT):
        assert importlib.util.find_spec(module), module
    for path in re.findall(r"`((?:tests|scripts|configs|docs)/[\w/.]+)`|\]\(([\w/.]+)\)", TEXT):
        place = ROOT / path[0] if path[0] else ROOT / "docs" / path[1]
        assert place.exists(), place
    for variable in set(re.findall(r"LLAVA_JUDGE_\w+", TEXT)):
        sources = Path(chat_api.__file__).read_text() + Path(judge.__file__).read_text()
        assert f'"{variable}"' in sources, variable
    assert f"`{chat_api.DEFAULT_MODEL}`" in TEXT and str(int(chat_api.DEFAULT_TIMEOUT)) in TEXT
