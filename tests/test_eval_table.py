"""Tables of results: the paper's numbers as data, measured ones beside them, and what is drawn of both."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from statistics import mean

import pytest

from llava.compression.config import CompressionConfig, presets
from llava.eval.benchmarks import NAMES
from llava.eval.plots import accuracy_over_budget
from llava.eval.results import RESULT_SUFFIX, Result
from llava.eval.table import main
from llava.eval.tables.published import read_table, relative_average, table_names
from llava.eval.tables.rows import family

BASE = "liuhaotian/llava-v1.5-7b"
TITLES = {"pope": "POPE", "sqa": "SQA-I", "textvqa": "VQA-T", "mme": "MME", "gqa": "GQA"}
WHOLE = {"pope": 80.0, "sqa": 70.0, "textvqa": 50.0, "mme": 1500.0, "gqa": 60.0}
HALF_POPE = WHOLE | {"pope": 40.0}  # half in one of five benchmarks: 90 per cent on average
BUDGETS = ("192", "128", "64")
ONLY_AVERAGES = {
    "table-5": {("192", "VisionZip"), ("192", "PyramidDrop"), ("192", "DUET (C)"), ("64", "DUET (C)")},
    "table-6": {(budget, "DUET (C)") for budget in BUDGETS},
    "table-8": {(budget, "DUET (C)") for budget in BUDGETS},
    "table-9-10": {
        *((budget, method) for budget in ("640", "320", "160") for method in ("VisionZip (C)", "DUET (C+all)")),
        *((budget, "DUET (C+S)") for budget in ("640", "320", "160")),
        *((budget, "DUET (vanilla)") for budget in ("320", "160")),
    },
}
"""Rows of which only the average, or no score at all, is kept."""


def save(
    folder: Path, scores: dict[str, float | None], model: str = BASE, compression: str = "none", **more: object
) -> None:
    """Result files of one model under one compression, in a folder of their own."""
    more = {"num_questions": 100, "num_answered": 100, "average_tokens": 576.0} | more
    place = folder / f"{len(list(folder.rglob('*')))}"
    place.mkdir(parents=True)
    known = (
        CompressionConfig.from_preset(compression).to_dict() if compression in presets() else {"v2v": {"dominant": 9}}
    )
    for name, score in scores.items():
        result = Result(name, TITLES.get(name, name), model, compression, known, headline=score, **more)
        result.save(place / f"{name}{RESULT_SUFFIX}")


def save_training(folder: Path, compression: str, hours: float) -> None:
    for phase, share in (("pretrain", 0.25), ("finetune", 0.75)):
        summary = {
            "compression": CompressionConfig.from_preset(compression).to_dict(),
            "average_visual_tokens": 191.75,
            "result": {"train_runtime": 3600 * hours * share},
        }
        (folder / phase).mkdir(parents=True)
        (folder / phase / "train_summary.json").write_text(json.dumps(summary))


def table_of(text: str, title: str) -> tuple[list[dict[str, str]], list[str]]:
    """Lines, by heading, and notes of one table of a Markdown text."""
    part = next(part for part in text.split("## ")[1:] if part.startswith(title))
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line.startswith("|")
    ]
    notes = [line.removeprefix("- ") for line in part.splitlines() if line.startswith("- ")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]], notes


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


@pytest.mark.parametrize("name", table_names())
def test_every_printed_average_follows_from_the_printed_scores(name: str) -> None:
    table = read_table(name)
    incomplete, bare = set(), set()
    for row in table.rows:
        if not row.scores:
            bare.add((row.budget, row.method))
            continue
        shares = [100 * score / table.baseline.scores[column] for column, score in row.scores.items()]
        assert mean(shares) == pytest.approx(row.average, abs=0.1), (row.budget, row.method)
        if len(shares) < len(table.benchmarks):
            incomplete.add(row.method)
    assert incomplete == ({"PyramidDrop"} if name == "table-1" else set()), "averages over fewer benchmarks"
    assert bare == ONLY_AVERAGES.get(name, set())


def test_the_papers_tables_name_presets_and_benchmarks_that_exist() -> None:
    tables = [read_table(name) for name in table_names()]
    assert [table.name for table in tables] == [
        *(f"table-{number}" for number in range(1, 9)),
        "table-9-10",
        "table-11",
    ]
    for table in tables:
        assert {row.preset for row in table.rows} - {None} <= set(presets()), table.name
        assert set(table.benchmarks.values()) <= set(NAMES), table.name
        assert table.baseline.preset == "none" and table.source.startswith("DUET-VLM")
        assert family(table.model) == table.model
    duet = read_table("1").row("duet-64")
    assert duet is not None and (duet.scores["MME"], duet.average) == (1751, 95.4)
    assert read_table("3").row("fastv") is None
    assert any("weak" in caveat for caveat in read_table("3").caveats)
    with pytest.raises(ValueError, match="no table '12' of the paper; there are table-1, "):
        read_table("12")


def test_an_average_is_of_the_same_benchmarks_or_none() -> None:
    assert relative_average({"a": 30, "b": 100}, {"a": 60, "b": 80}) == pytest.approx((50 + 125) / 2)
    assert relative_average({"a": 30}, {"a": 60, "b": 80}) is None
    assert relative_average({}, {}) is None
    assert relative_average({"a": 1}, {"a": 0}) is None


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (BASE, "llava-1.5-7b"),
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b"),
        ("./checkpoints/reproduce/llava-v1.5-7b-duet-192/finetune", "llava-1.5-7b"),
        ("liuhaotian/llava-v1.5-13b", "llava-1.5-13b"),
        ("liuhaotian/llava-v1.6-vicuna-7b", "llava-next-7b"),
        ("LanguageBind/Video-LLaVA-7B", "video-llava-7b"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b"),
        ("out/tiny-duet-64/finetune/checkpoint-12", "tiny"),
        ("out/tiny-none/finetune", "tiny"),
    ],
)
def test_models_are_compared_within_families(model: str, name: str) -> None:
    assert family(model) == name


def test_a_result_stands_beside_its_row_relative_to_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, WHOLE)
    save(tmp_path, HALF_POPE, compression="duet-192", average_tokens=191.75)
    save(tmp_path, HALF_POPE, compression="random-64")
    lines, notes = table_of(shown(capsys, tmp_path, "--paper"), "Table 1:")
    (beside,) = [line for line in lines if (line["Budget"], line["Method"]) == ("192", "DUET (C)")]
    assert (beside["POPE, paper"], beside["POPE, measured"]) == ("86.5", "40.0")
    assert (beside["MME, paper"], beside["MME, measured"]) == ("1817", "1500")
    assert (beside["Avg, paper"], beside["Avg, measured"]) == ("99.0", "90.0")
    assert (beside["Tokens"], beside["Model"]) == ("191.75", "llava-v1.5-7b")
    assert lines[0]["Method"] == "Uncompressed" and lines[0]["Avg, measured"] == "100.0"
    assert lines[-1]["Method"] == "random-64 (measured only)" and lines[-1]["POPE, paper"] == "-"
    assert lines[1]["Method"] == "FastV" and lines[1]["POPE, measured"] == "-" and lines[1]["Model"] == "-"
    assert "The average of llava-v1.5-7b is relative to llava-v1.5-7b, measured uncompressed." in notes
    assert any("copied from their papers" in note for note in notes)
    assert "Table 3:" not in shown(capsys, tmp_path, "--paper"), "nothing was trained under a budget"


def test_without_a_measured_baseline_the_papers_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Half the paper's POPE of 85.9, all of its other scores: 90 per cent of five benchmarks.
    scores = {"pope": 42.95, "sqa": 69.5, "textvqa": 58.2, "mme": 1862.0, "gqa": 61.9}
    save(tmp_path, scores, compression="duet-64")
    lines, notes = table_of(shown(capsys, tmp_path, "--tables", "1"), "Table 1:")
    assert lines[-1]["Method"] == "DUET (C)" and lines[-1]["Avg, measured"] == "90.0"
    assert any("relative to the paper's baseline; none was measured" in note for note in notes)
    (line,), notes = table_of(shown(capsys, tmp_path), "llava-1.5-7b, measured")
    assert line["Avg"] == "-" and notes == [
        "llava-v1.5-7b, duet-64: no average, as no model was measured uncompressed."
    ]


def test_trained_models_stand_in_the_tables_of_trained_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, plain = (f"./checkpoints/reproduce/llava-v1.5-7b-{name}/finetune" for name in ("duet-192", "none"))
    save(tmp_path, {name: 2 * score for name, score in WHOLE.items()})
    save(tmp_path, WHOLE, plain)
    save(tmp_path, HALF_POPE, trained, "duet-192")
    save(tmp_path, WHOLE, trained, "duet-64")
    assert "Table 1:" not in shown(capsys, tmp_path, "--paper"), "no budget was used at inference only"
    text = shown(capsys, tmp_path, "--tables", "1,3")
    lines, notes = table_of(text, "Table 3:")
    (row,) = [line for line in lines if line["Method"] == "DUET (C)" and line["Budget"] == "192"]
    assert row["Avg, measured"] == "90.0", "relative to the model that was trained here, not to the published one"
    assert "The average of llava-v1.5-7b-duet-192 is relative to llava-v1.5-7b-none, measured uncompressed." in notes
    assert all(line["POPE, measured"] == "-" for line in lines if line["Budget"] == "64")
    assert all("duet" not in line["Model"] for line in table_of(text, "Table 1:")[0])
    (other,), _ = table_of(text, "llava-1.5-7b, measured")
    assert (other["Method"], other["Model"]) == ("duet-64", "llava-v1.5-7b-duet-192"), (
        "trained for one, used at another"
    )


def test_a_local_checkpoint_says_itself_what_it_was_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "models" / "my-llava-v1.5-7b"
    model.mkdir(parents=True)
    carried = CompressionConfig.from_preset("duet-128").to_dict()
    (model / "config.json").write_text(json.dumps({"compression": carried}))
    save(tmp_path / "results", WHOLE, str(model), "duet-128")
    lines, _ = table_of(shown(capsys, tmp_path / "results", "--paper"), "Table 3:")
    assert [line["Budget"] for line in lines if line["Model"] == "my-llava-v1.5-7b"] == ["128"]


def test_incomplete_answers_and_several_runs_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, WHOLE)
    save(tmp_path, HALF_POPE, compression="duet-192")
    save(tmp_path, {"textvqa": 40.0, "pope": 40.0}, compression="duet-192", seed=1)
    save(tmp_path, {"gqa": 54.0}, compression="duet-64", num_answered=99)
    lines, notes = table_of(shown(capsys, tmp_path, "--paper"), "Table 1:")
    twice = next(line for line in lines if line["Method"] == "DUET (C)" and line["Budget"] == "192")
    assert (twice["VQA-T, measured"], twice["POPE, measured"], twice["GQA, measured"]) == ("45.0‡", "40.0‡", "60.0")
    # POPE 50 %, TextVQA 45 of 50 = 90 %, three of 100 %.
    assert twice["Avg, measured"] == "88.0‡"
    assert "‡ VQA-T, llava-v1.5-7b, duet-192: mean of 2 runs, from 40.0 to 50.0." in notes
    part = next(line for line in lines if line["Method"] == "DUET (C)" and line["Budget"] == "64")
    assert (part["GQA, measured"], part["POPE, measured"], part["Avg, measured"]) == ("54.0†", "-", "-")
    assert "† GQA, llava-v1.5-7b, duet-64: 99 of 100 questions were answered." in notes
    assert "llava-v1.5-7b, duet-64: no average without POPE, SQA-I, VQA-T, MME." in notes


def test_an_incomplete_baseline_is_said_of_every_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, WHOLE, num_answered=99)
    save(tmp_path, HALF_POPE, compression="duet-64")
    _, notes = table_of(shown(capsys, tmp_path, "--paper"), "Table 1:")
    said = "relative to llava-v1.5-7b, measured uncompressed, with some questions not answered."
    assert f"The average of llava-v1.5-7b is {said}" in notes


def test_what_only_a_server_can_score_has_no_number_and_judges_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, {"vqav2": None})
    save(tmp_path, {"mmvet": 30.0}, judge={"model": "gpt-4-0613"})
    (line,), notes = table_of(shown(capsys, tmp_path), "llava-1.5-7b, measured")
    assert (line["vqav2"], line["mmvet"], line["Avg"]) == ("-", "30.0", "-")
    assert "mmvet, llava-v1.5-7b, none: judged by gpt-4-0613." in notes


def test_csv_holds_numbers_and_what_the_marks_stand_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, {"pope": 40.0}, compression="duet-192", num_answered=98)
    save(tmp_path, {"pope": 41.0}, compression="duet-192", seed=1)
    cells = list(csv.DictReader(io.StringIO(shown(capsys, tmp_path, "--tables", "1,6", "--format", "csv"))))
    (cell,) = [cell for cell in cells if cell["model"] and cell["column"] == "POPE"]
    assert (cell["table"], cell["budget"], cell["method"]) == ("table-1", "192", "DUET (C)")
    assert (cell["paper"], cell["measured"], cell["runs"]) == ("86.5", "40.5", "2")
    assert (cell["low"], cell["high"], cell["answered"], cell["questions"]) == ("40.0", "41.0", "198", "200")
    assert [cell["paper"] for cell in cells if cell["table"] == "table-6"] == ["0.0", "26.0", "31.0", "36.0"]


def test_latex_is_escaped_and_has_as_many_cells_as_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, {"pope": 40.0}, "my/a_b-llava-v1.5-7b", "own_90%.yaml", num_answered=1)
    text = shown(capsys, tmp_path, "--paper", "--format", "latex")
    assert r"own\_90\%.yaml (measured only)" in text and r"40.0\dag{}" in text and r"a\_b-llava-v1.5-7b" in text
    assert not re.search(r"(?<!\\)[%_†]", text)
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    columns = re.search(r"\\begin{tabular}{(\w+)}", text)
    assert columns is not None
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {len(columns[1])}


def test_training_time_stands_beside_table_6(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_training(tmp_path / "llava-v1.5-7b-none", "none", 4)
    save_training(tmp_path / "llava-v1.5-7b-duet-192", "duet-192", 3)
    lines, notes = table_of(shown(capsys, tmp_path, "--paper"), "Table 6:")
    saved = {line["Budget"]: line["Training time saved (%), measured"] for line in lines}
    assert saved == {"576": "0.0", "192": "25.0", "128": "-", "64": "-"}
    assert any("duet-192: 3.00 h of pretrain and finetune, as against" in note for note in notes)


def test_files_are_written_one_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "results", {"pope": 40.0})
    save(tmp_path / "results", {"pope": 40.0}, "out/my model")
    shown(capsys, tmp_path / "results", tmp_path / "results", "--paper", "--out", tmp_path / "report")
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["my-model.md", "table-1.md", "table-11.md", "table-7.md", "table-8.md"]
    assert "‡" not in (tmp_path / "report" / "table-1.md").read_text(), "the same folder twice is one run"


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a folder" in refused(capsys, tmp_path / "nowhere")
    assert "There is no result file in" in refused(capsys, tmp_path, "--paper")
    save(tmp_path, {"pope": 40.0})
    assert "--plots needs --out" in refused(capsys, tmp_path, "--plots")
    assert "no table '99'" in refused(capsys, tmp_path, "--tables", "99")
    (tmp_path / f"broken{RESULT_SUFFIX}").write_text("{")
    assert "broken.result.json is not a result file" in refused(capsys, tmp_path)


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
