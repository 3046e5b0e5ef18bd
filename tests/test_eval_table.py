"""Tables of results: measured numbers beside published ones."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from saved_results import HALF_POPE, WHOLE, refused, save, save_training, shown, table_of

from llava.eval.scoring.benchmark_result import RESULT_SUFFIX
from llava.eval.table import main
from llava.eval.tables.training import was_resumed


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


def test_other_papers_stand_beside_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, {"mmbench": 60.0}, compression="visionzip-64")
    save(tmp_path, {"pope": 70.0}, "liuhaotian/llava-v1.6-vicuna-7b", "visionzip-next-320")
    text = shown(capsys, tmp_path, "--paper")
    lines, notes = table_of(text, "VisionZip, Table 1:")
    (line,) = [line for line in lines if line["Model"] != "-"]
    assert (line["Method"], line["MMB, paper"], line["MMB, measured"]) == ("VisionZip", "60.1", "60.0")
    assert (line["MMMU, paper"], line["MMMU, measured"], line["Avg, paper"]) == ("36.2", "-", "94.0")
    assert any(
        note.endswith("no average without GQA, MME, POPE, SQA-I, VQAv2, VQA-T, MMMU, SEED, MMVet, LLaVA-B.")
        for note in notes
    )
    lines, _ = table_of(text, "Tables 9 and 10:")
    (line,) = [line for line in lines if line["Model"] != "-"]
    assert (line["Budget"], line["Method"], line["POPE, paper"]) == ("320", "VisionZip", "82.1")


def test_a_published_baseline_with_gaps_gives_no_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = dict.fromkeys(("gqa", "mmbench", "mme", "pope", "sqa", "vqav2", "textvqa"), 50.0)
    save(tmp_path, scores, "liuhaotian/llava-v1.6-vicuna-7b", "visionzip-next-320")
    lines, notes = table_of(shown(capsys, tmp_path, "--tables", "visionzip-next"), "VisionZip: LLaVA-NeXT")
    assert {line["Avg, measured"] for line in lines} == {"-"}
    assert any("no average, as no model was measured uncompressed" in note for note in notes)


def test_csv_holds_numbers_and_what_the_marks_stand_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, {"pope": 40.0}, compression="duet-192", num_answered=98, num_counted=97, notes=("Half a split.",))
    save(tmp_path, {"pope": 41.0}, compression="duet-192", num_answered=99, seed=1)
    cells = list(csv.DictReader(io.StringIO(shown(capsys, tmp_path, "--tables", "1,6", "--format", "csv"))))
    (cell,) = [cell for cell in cells if cell["model"] and cell["column"] == "POPE"]
    assert (cell["table"], cell["budget"], cell["method"]) == ("table-1", "192", "DUET (C)")
    assert (cell["paper"], cell["measured"], cell["runs"]) == ("86.5", "40.5", "2")
    assert (cell["low"], cell["high"], cell["notes"]) == ("40.0", "41.0", "Half a split.")
    assert (cell["counted"], cell["answered"], cell["questions"]) == ("196", "197", "200")
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


def test_time_is_saved_only_against_as_much_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def saved(name: str, **more: object) -> str:
        save_training(
            tmp_path / name / "llava-v1.5-7b-none", "none", 4, counts={"samples": 1000}, metrics={"devices": 8}
        )
        save_training(tmp_path / name / "llava-v1.5-7b-duet-192", "duet-192", 3, **more)
        lines, notes = table_of(shown(capsys, tmp_path / name, "--paper"), "Table 6:")
        assert name == "same" or any("of as many samples on as many devices" in note for note in notes)
        return next(line["Training time saved (%), measured"] for line in lines if line["Budget"] == "192")

    assert saved("same", counts={"samples": 995}, metrics={"devices": 8}) == "25.0", "some could not be read"
    assert saved("part", counts={"samples": 100}, metrics={"devices": 8}) == "-"
    assert saved("more", counts={"samples": 1000}, metrics={"devices": 16}) == "-"


def test_the_time_of_a_resumed_training_is_not_taken_for_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_training(tmp_path / "llava-v1.5-7b-none", "none", 4)
    save_training(tmp_path / "llava-v1.5-7b-duet-192", "duet-192", 1)
    path = tmp_path / "llava-v1.5-7b-duet-192" / "finetune" / "train_summary.json"
    summary = json.loads(path.read_text())
    # 5,197 steps, as transformers writes it: the rate counts the steps since the checkpoint that it went on from.
    for steps, resumed in ((5197, False), (1300, True)):
        seconds = summary["result"]["train_runtime"]
        summary["result"] |= {"step": 5197, "train_steps_per_second": round(steps / seconds, 3)}
        path.write_text(json.dumps(summary))
        assert was_resumed(summary, "x") == resumed
    lines, notes = table_of(shown(capsys, tmp_path, "--paper"), "Table 6:")
    assert next(line for line in lines if line["Budget"] == "192")["Training time saved (%), measured"] == "-"
    assert any("h of pretrain and finetune since it was resumed" in note for note in notes)
    assert main([str(tmp_path), "--paper", "--out", str(tmp_path / "out"), "--plots"]) == 0
    assert "duet-192 was resumed" in capsys.readouterr().err
    assert "duet" not in (tmp_path / "out" / "llava-1.5-7b-training-time.svg").read_text()


def test_files_are_written_one_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "results", {"pope": 40.0})
    save(tmp_path / "results", {"pope": 40.0}, "out/my model")
    shown(capsys, tmp_path / "results", tmp_path / "results", "--paper", "--out", tmp_path / "report")
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == [
        "my-model.md",
        "pyramiddrop.md",
        "table-1.md",
        "table-11.md",
        "table-7.md",
        "table-8.md",
        "visionzip-1.md",
    ]
    assert "‡" not in (tmp_path / "report" / "table-1.md").read_text(), "the same folder twice is one run"


def test_tables_and_drawings_of_names_that_differ_in_marks_alone_are_all_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, model in enumerate(("my model", "my-model", "my+model")):
        save(tmp_path / "results", {"a/b": 40.0 + number}, model, "duet-64")
    out = tmp_path / "report"
    shown(capsys, tmp_path / "results", "--out", out, "--plots")
    assert sorted(path.name for path in out.iterdir()) == [
        f"my-model{ending}" for ending in ("-2.md", "-3.md", "-a-b-2.svg", "-a-b-3.svg", "-a-b.svg", ".md")
    ]
    texts = [(out / f"my-model{number}.md").read_text() for number in ("", "-2", "-3")]
    assert [f"{score:.1f}" in text for score, text in zip((40, 41, 42), texts, strict=True)] == [True] * 3


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a folder" in refused(capsys, tmp_path / "nowhere")
    assert "There is no result file in" in refused(capsys, tmp_path, "--paper")
    save(tmp_path, {"pope": 40.0})
    assert "--plots needs --out" in refused(capsys, tmp_path, "--plots")
    assert "no published table '99'" in refused(capsys, tmp_path, "--tables", "99")
    (tmp_path / f"broken{RESULT_SUFFIX}").write_text("{")
    assert "broken.result.json is not a result file" in refused(capsys, tmp_path)
