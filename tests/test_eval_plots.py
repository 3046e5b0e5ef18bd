"""Drawings of accuracy and training time over budgets."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from saved_results import BASE, WHOLE, save, save_training, shown

from llava.compression.config import CompressionConfig
from llava.eval.scoring.benchmark_result import Result
from llava.eval.table import _accuracies, main
from llava.eval.tables.gathering import measured_rows
from llava.eval.tables.plots import accuracy_over_budget


def test_the_uncompressed_line_is_of_a_model_that_was_trained_uncompressed(tmp_path: Path) -> None:
    def result(model: str, score: float, compression: str, tokens: float) -> Result:
        config = CompressionConfig.from_preset(compression).to_dict()
        return Result("pope", "POPE", model, compression, config, tokens, 1, 1, score)

    trained = "out/llava-v1.5-7b-duet-64/finetune"
    results = [
        result(trained, 70.0, "none", 576),
        result(trained, 60.0, "duet-64", 63.75),
        result(BASE, 80.0, "none", 576),
        result("out/llava-v1.5-7b-none", 85.0, "none", 576),
        result(BASE, 50.0, "duet-64-all", 63.75),
    ]
    series, baseline = _accuracies(measured_rows(results), "pope")
    assert baseline == 80.0
    assert series == {
        "none (llava-v1.5-7b-duet-64)": [(576, 70.0, 70.0, 70.0)],
        "duet (trained)": [(63.75, 60.0, 60.0, 60.0)],
        "none (llava-v1.5-7b-none)": [(576, 85.0, 85.0, 85.0)],
        "duet-all": [(63.75, 50.0, 50.0, 50.0)],
    }


def test_a_missing_matplotlib_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    save(tmp_path / "results", {"pope": 40.0}, compression="duet-64")
    assert main([str(tmp_path / "results"), "--plots", "--out", str(tmp_path / "report")]) == 2
    assert "Drawing needs matplotlib" in capsys.readouterr().err
    assert list((tmp_path / "report").glob("*.md")), "tables are written before anything is drawn"


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    for series, name, reason in (
        ({"duet": [(64, 90, 89, 91)]}, "a.bmp", "must end in .svg, .png, .pdf"),
        ({}, "a.svg", "nothing to draw"),
        ({"duet": []}, "a.svg", "at least one point"),
        ({"duet": [(64, 88, 89, 91)]}, "a.svg", "duet at 64 tokens is 88, outside its bar from 89 to 91"),
    ):
        with pytest.raises(ValueError, match=reason):
            accuracy_over_budget(series, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_drawing_has_a_line_a_method_and_an_error_bar_a_point(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    series = {"duet": [(192, 99, 98, 100), (64, 95, 93, 96)], "random": [(64, 80, 70, 85)]}
    path = accuracy_over_budget(series, tmp_path / "deep" / "a.svg", title="tiny", baseline=100.0)
    drawing = path.read_text()
    ElementTree.fromstring(drawing)
    assert drawing.count('id="LineCollection_') == 2 * 2, "bars of two methods, in the drawing and in its legend"
    assert "<!-- uncompressed -->" in drawing
    assert "<!-- random -->" in drawing and "<dc:date>" not in drawing


@pytest.mark.parametrize("ending", [".svg", ".pdf"])
def test_the_same_numbers_give_the_same_file(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    series = {"duet": [(192, 99, 98, 100)]}
    first, second = (accuracy_over_budget(series, tmp_path / f"{name}{ending}", baseline=100.0) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_the_command_draws_every_benchmark_and_the_training_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    save(tmp_path / "results", WHOLE)
    for name, tokens in (("duet-64", 63.75), ("duet-192", 191.75)):
        save(tmp_path / "results", {"pope": 70.0}, compression=name, average_tokens=tokens)
    save_training(tmp_path / "results" / "llava-v1.5-7b-duet-192", "duet-192", 3)
    shown(capsys, tmp_path / "results", "--plots", "--plot-format", ".png", "--out", tmp_path / "report")
    drawings = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert drawings == {"llava-1.5-7b-pope.png", "llava-1.5-7b-training-time.png"}
