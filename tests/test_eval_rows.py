"""Result files gathered into rows: what is averaged, what stands alone, and what is said of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saved_results import BASE, WHOLE, save, shown, table_of

from llava.compression.config import CompressionConfig
from llava.eval.tables.rows import family


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
        # A folder around the model names the work that it belongs to, not the model.
        ("/data/video-llava-7b/checkpoints/llava-v1.5-7b-duet-192", "llava-1.5-7b"),
        ("/data/llava-v1.5-13b-work/llava-v1.5-7b/finetune", "llava-1.5-7b"),
        ("hub/models--liuhaotian--llava-v1.5-13b/snapshots/4481d270cc", "llava-1.5-13b"),
    ],
)
def test_models_are_compared_within_families(model: str, name: str) -> None:
    assert family(model) == name


def test_only_seeds_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"temperature": 0, "batch_size": 1, "max_new_tokens": 128}
    save(tmp_path, {"pope": 40.0}, compression="duet-64", settings=plain)
    save(tmp_path, {"pope": 50.0}, compression="duet-64", settings=plain | {"batch_size": 16, "num_gpus": 8}, seed=1)
    save(tmp_path, {"pope": 60.0}, compression="duet-64", settings=plain | {"temperature": 0.7})
    save(tmp_path, {"pope": 70.0}, compression="duet-64", settings=plain | {"max_new_tokens": 8})
    save(tmp_path, {"sqa": 30.0}, compression="duet-64", settings=plain | {"max_new_tokens": 1024})
    lines, notes = table_of(shown(capsys, tmp_path, "--tables", "1"), "Table 1:")
    found = {
        line["Method"]: (line["POPE, measured"], line["SQA-I, measured"]) for line in lines if line["Model"] != "-"
    }
    assert found == {
        "DUET (C), temperature 0, max_new_tokens 128": ("45.0‡", "30.0"),
        "DUET (C), temperature 0, max_new_tokens 8": ("70.0", "-"),
        "DUET (C), temperature 0.7": ("60.0", "-"),
    }
    assert any(note.startswith("‡ POPE, llava-v1.5-7b, duet-64 (temperature 0, max_new_tokens 128)") for note in notes)


def test_a_complete_run_and_the_newest_of_a_seed_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, {"pope": 10.0}, compression="duet-64", num_answered=99, date="2025-03-01", seed=1)
    save(tmp_path, {"pope": 20.0}, compression="duet-64", date="2025-02-01", average_tokens=63.75)
    save(tmp_path, {"pope": 30.0}, compression="duet-64", date="2025-01-01")
    (line,), notes = table_of(shown(capsys, tmp_path), "llava-1.5-7b, measured")
    assert (line["POPE"], line["Tokens"], line["Model"]) == ("20.0", "63.75", "llava-v1.5-7b")
    assert {"POPE: Incomplete runs, left out: 1.", "POPE: Older runs with the same seed, left out: 1."} <= set(notes)


def test_every_judge_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judges = [{"model": "gpt-4.1", "answered_as": ["gpt-4.1-2025-04-14"]}, {"model": "gpt-4-0613"}]
    save(tmp_path, {"mmvet": None})
    for judge, score in zip(judges, (30.0, 20.0), strict=True):
        save(tmp_path, {"mmvet": score}, judge=judge, num_counted=90)
    save(tmp_path, {"llava_bench": 60.0}, judge=judges[1])
    lines, notes = table_of(shown(capsys, tmp_path), "llava-1.5-7b, measured")
    found = {line["Method"]: (line["mmvet"], line["llava_bench"], line["Model"]) for line in lines}
    assert found == {
        "none, judge gpt-4.1 (gpt-4.1-2025-04-14)": ("30.0†", "-", "llava-v1.5-7b†"),
        "none, judge gpt-4-0613": ("20.0†", "60.0", "llava-v1.5-7b†"),
    }, "what no judge has seen gives way to what one has"
    place = "mmvet, llava-v1.5-7b, none (judge gpt-4-0613)"
    assert f"† {place}: 100 of 100 questions were answered; the score is about 90 of them." in notes
    assert f"{place}: judged by gpt-4-0613." in notes


def test_a_baseline_that_was_asked_otherwise_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hot, cold = {"temperature": 0.7}, {"temperature": 0}
    save(tmp_path, {"pope": 80.0}, settings=hot)
    save(tmp_path, {"pope": 40.0}, compression="duet-64", settings=cold)
    lines, notes = table_of(shown(capsys, tmp_path), "llava-1.5-7b, measured")
    assert lines[1]["Avg"] == "50.0"
    said = "The average of llava-v1.5-7b, duet-64, is relative to llava-v1.5-7b, measured uncompressed"
    assert f"{said}, with other settings." in notes
    save(tmp_path, {"pope": 50.0}, settings=cold)
    lines, notes = table_of(shown(capsys, tmp_path), "llava-1.5-7b, measured")
    assert next(line["Avg"] for line in lines if line["Method"] == "duet-64") == "80.0", "the like one is taken"
    assert not any("with other settings" in note for note in notes)


def test_a_name_does_not_make_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = CompressionConfig.from_preset("duet-64").to_dict()
    other = preset | {"v2v": preset["v2v"] | {"contextual": 31}}
    save(tmp_path, {"pope": 40.0}, compression="duet-64", config=other)
    save(tmp_path, {"pope": 50.0}, compression="mine", config={"t2v": preset["t2v"], "v2v": preset["v2v"]})
    save(tmp_path, {"pope": 60.0}, compression="none", config=other | {"t2v": None})
    lines, _ = table_of(shown(capsys, tmp_path, "--tables", "1"), "Table 1:")
    found = {line["Method"]: line["POPE, measured"] for line in lines if line["Model"] != "-"}
    assert found == {
        "DUET (C), v2v.contextual 30": "50.0",
        "duet-64 (measured only), not the preset, v2v.contextual 31": "40.0",
        "none (measured only), not the preset": "60.0",
    }


def test_notes_of_results_stand_once_below_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = "99 of 100 questions were answered; the numbers are about these."
    save(tmp_path, {"pope": 80.0, "gqa": 60.0}, notes=("The headline is F1.",))
    save(
        tmp_path,
        {"pope": 40.0},
        compression="duet-64",
        notes=("The headline is F1.", "No\nadversarial.", counts),
        num_answered=99,
    )
    _, notes = table_of(shown(capsys, tmp_path, "--tables", "1"), "Table 1:")
    assert [note for note in notes if "F1" in note] == ["POPE: The headline is F1.", "GQA: The headline is F1."]
    assert "POPE, llava-v1.5-7b, duet-64: No adversarial." in notes
    assert [note for note in notes if "99 of" in note] == [
        "† POPE, llava-v1.5-7b, duet-64: 99 of 100 questions were answered."
    ]


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
