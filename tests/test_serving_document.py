"""docs/serving.md: its commands parse, its requests are answered, and it names every flag and field of the API."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import LONG, ApiServer, photos, tiny_engine

from llava.bench import serving
from llava.serve.api import __main__ as program
from llava.serve.api import completion_fields
from llava.serve.api.sent_media import _VIDEO_SUFFIXES

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
API = TEXT.partition("## The API")[2].partition("\n## ")[0]
PAGE = ROOT / "docs/benchmarks/serving.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", API, re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer(tiny_engine()) as running:
        yield running


def here(text: str, server: ApiServer) -> str:
    """An example with the server of the test in place of its own."""
    return text.replace("http://localhost:8000", server.url).replace("CHECKPOINT", "tiny")


def test_the_servers_commands_parse() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if "llava.serve.api" in line]
    assert lines
    for line in lines:
        assert program._parser().parse_args(shlex.split(line)[3:])
    (command,) = re.findall(r"python -m llava.bench.serving (.*)", PAGE.read_text(encoding="utf-8"))
    assert serving._parser().parse_args(shlex.split(command))


def test_the_examples_with_curl_are_answered(server: ApiServer, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    photos(1)[0].save(tmp_path / "photo.png")
    (block,) = [block for block in blocks("bash") if "curl" in block]
    script = here(block, server).replace("curl ", "curl -sS --noproxy '*' ")
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    decoder = json.JSONDecoder()
    models, end = decoder.raw_decode(done.stdout)
    reply, _ = decoder.raw_decode(done.stdout[end:].lstrip())
    assert models["data"][0]["id"] == "tiny"
    assert reply["choices"][0]["message"]["content"] and reply["usage"]["visual_tokens"]["before"] == 16


def test_the_example_in_python_streams(server: ApiServer, tmp_path: Path) -> None:
    photos(1)[0].save(tmp_path / "photo.png")
    (block,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", here(block, server)], cwd=tmp_path, capture_output=True, text=True, timeout=LONG
    )
    assert done.returncode == 0, done.stderr
    assert "{'before': 16, 'after_v2v': 16, 'average_over_layers': 16" in done.stdout


def test_every_field_and_type_is_named() -> None:
    fields = {*completion_fields._READ, *completion_fields.HARMLESS} - {"model"}
    assert {field for field in fields if f"`{field}" not in API} == set()
    kinds = {kind.partition("/")[2] for kind in _VIDEO_SUFFIXES}
    assert {kind for kind in kinds if f"{kind}`" not in API} == set()


def test_the_bounds_are_those_of_the_program() -> None:
    defaults = vars(program._parser().parse_args([]))
    for flags, values in re.findall(r"^\| (`--.*?) \| ([\d, ]+) \|", API, re.MULTILINE):
        names = [name.replace("-", "_") for name in re.findall(r"--([a-z-]+)", flags)]
        assert [defaults[name] for name in names] == [float(value) for value in values.split(",")]


def test_the_table_of_the_benchmark_is_that_of_its_figures() -> None:
    document = json.loads((PAGE.parent / "serving.json").read_text(encoding="utf-8"))
    assert serving.table(document) in PAGE.read_text(encoding="utf-8")
    assert {row["clients"] for row in document["rows"]} == {1, 8, 32}
    assert {row["budget"] for row in document["rows"]} == {"none", "duet-89"}


def test_the_benchmark_measures_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the server of the test in place of a process of its own."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    questions = []
    for number, photo in enumerate(photos(3)):
        photo.save(tmp_path / "data" / "images" / f"{number}.png")
        questions.append(json.dumps({"image": f"{number}.png", "text": f"Question {number}?"}))
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(questions))
    (tmp_path / "tiny").mkdir()
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- measured -->\nold\n<!-- /measured -->\nbehind\n")
    (tmp_path / "half.yaml").write_text("v2v: {dominant: 5, contextual: 3}\n")
    words = ["--model-path", str(tmp_path / "tiny"), "--clients", "1", "3", "--seconds", "0.1", "--rounds", "2"]
    words += ["--compression", "none", str(tmp_path / "half.yaml"), "--json", str(tmp_path / "out.json")]
    with ApiServer(tiny_engine()) as server:
        monkeypatch.setattr(serving, "served", lambda options: _Served(server.url))
        assert serving.main([*words, "--page", str(page)]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["budget"], row["clients"]) for row in rows] == [("none", 1), ("half", 1), ("none", 3), ("half", 3)]
    assert all(row["requests"] >= 2 * row["clients"] and row["requests_per_second"] > 0 for row in rows)
    assert rows[1]["visual_tokens"] == {"before": 16, "after_v2v": 8, "average_over_layers": 8}
    printed = capsys.readouterr().out
    assert page.read_text() == f"Before\n<!-- measured -->\n{printed}<!-- /measured -->\nbehind\n"


@pytest.mark.parametrize(
    ("line", "more", "said"),
    [
        ('{"text": "What?"}', [], "test.jsonl, line 1 lacks image or text"),
        ("", [], "test.jsonl holds no question"),
        ('{"image": "../1.png", "text": "What?"}', [], "does not lie in the image folder"),
        ('{"image": "1.png", "text": "What?"}', ["--json", "data/test.jsonl"], "which this command reads"),
        ('{"image": "1.png", "text": "What?"}', ["--compression", "none", "b/none.yaml"], "called alike"),
    ],
)
def test_what_the_benchmark_cannot_ask_is_said_in_words(
    line: str, more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Tracebacks, a file of questions that was overwritten, and one of two budgets that was not measured."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "tiny", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "b" / "none.yaml").write_text("v2v: {dominant: 5, contextual: 3}\n")
    (tmp_path / "data" / "test.jsonl").write_text(f"{line}\n")
    assert serving.main(["--model-path", "tiny", "--questions", "data/test.jsonl", *more]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "data" / "test.jsonl").read_text() == f"{line}\n"


class _Served:
    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> str:
        return self.address

    def __exit__(self, *error: object) -> None:
        return None
