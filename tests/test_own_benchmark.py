"""A benchmark from outside this package: registered by name, checked, asked, scored, scored again, and in a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from eval_small import read_lines
from PIL import Image
from tiny_folder import write_model

from llava.eval import data, run, score, table
from llava.eval.benchmarks import benchmark_names, get_benchmark

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
MODULE = next(code for code in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if "class Colours" in code)
"""The example of the document."""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package beside this one, as pip installs it: a module, and the entry point that registers its benchmark."""
    site = tmp_path / "site"
    facts = site / "colours_bench-1.0.dist-info"
    facts.mkdir(parents=True)
    (site / "colours_bench.py").write_text(MODULE)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: colours-bench\nVersion: 1.0\n")
    register(facts, "colours = colours_bench:Colours")
    monkeypatch.syspath_prepend(site)
    yield facts


def register(facts: Path, *lines: str) -> None:
    (facts / "entry_points.txt").write_text("\n".join(("[llava.benchmarks]", *lines, "")))


@pytest.mark.usefixtures("outside")
def test_a_benchmark_of_another_package_is_asked_scored_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    (root / "colours").mkdir(parents=True)
    records = [{"id": n, "file": f"{n}.png", "colour": c} for n, c in enumerate(("red", "blue", "red"))]
    (root / "colours" / "colours.json").write_text(json.dumps(records))
    for record in records:
        Image.new("RGB", (20, 20), record["colour"]).save(root / "colours" / record["file"])
    model = str(write_model(tmp_path / "llava-v1.5-tiny"))

    assert "colours" in benchmark_names()
    assert data.main(["--benchmarks", "colours", "--check", "--images", "--eval-folder", str(root)]) == 0
    assert "colours: ready, 3 questions; 3 of 3 images" in capsys.readouterr().out
    words = ["--model-path", model, "--benchmarks", "colours", "--eval-folder", str(root), "--output", str(out)]
    assert run.main([*words, "--device", "cpu"]) == 0
    assert "COL" in capsys.readouterr().out
    folder = out / "llava-v1.5-tiny" / "own"
    lines = read_lines(folder / "colours.answers.jsonl")
    assert [line["question_id"] for line in lines] == [0, 1, 2]
    lines[1]["text"] = "Blue"
    (folder / "colours.answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert score.main([str(out)]) == 0, "the answers are scored by the name of their file"
    assert json.loads((folder / "colours.result.json").read_text())["headline"] == pytest.approx(100 / 3)
    capsys.readouterr()
    assert table.main([str(out)]) == 0
    printed = capsys.readouterr().out
    assert "COL" in printed and "33.3" in printed


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gqa = colours_bench:Colours", "Several benchmarks have the name 'gqa'"),
        ("hues = colours_bench:Colours", "has the name 'hues'"),
        ("hues = json:JSONDecoder", "inherits from llava.eval.benchmarks.base.Benchmark"),
        ("hues = colours_bench:Hues", "cannot be made by colours_bench:Hues"),
        ("hues = colours_away:Hues", "No module named 'colours_away'"),
    ],
)
def test_a_registered_benchmark_that_cannot_be_used_is_refused_by_name(outside: Path, line: str, said: str) -> None:
    """Never taken for one of this project's, and never left out in silence."""
    register(outside, line)
    with pytest.raises(ValueError, match=said):
        get_benchmark(line.split(" ")[0])
