"""`python -m llava.data.check`: survival of workers, files in and out, and the command."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import dying_worker
import numpy as np
import pytest
from faulty_data import ASSUMED, checked, kinds, shown, talk, write_images
from tiny_text import byte_level, llama, llava_inputs
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from warm_python import warm_python

from llava.constants import IGNORE_INDEX
from llava.cost.shapes import CLIP_L_336, MODELS
from llava.data.check import checking as run
from llava.data.check.budgets import figures
from llava.data.check.check_report import Report, in_order
from llava.data.check.check_settings import CheckSettings
from llava.data.check.checking import check
from llava.data.check.command import main
from llava.data.check.findings import KINDS
from llava.data.check.sources import SourceError, read_objects, read_sources, write_clean
from llava.data.check.worker_pool import MOST_DEATHS, WorkerPool, chunks_of
from llava.data.dataset import DataConfig, LazySupervisedDataset
from llava.data.records import parse_record

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("images")
    write_images(at)
    return at


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    at = tmp_path_factory.mktemp("tokenizer")
    llama().save_pretrained(at)
    return str(at)


# === Workers ===


def test_results_in_parallel_equal_those_of_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(warm_python()))
    names = sorted(path.name for path in folder.iterdir())
    data = [shown(f"r{index % 290}", names[index % len(names)], "word " * (index % 40)) for index in range(300)]
    alone, shared = checked(data, folder, 0), checked(data, folder, 2)
    assert alone.findings == shared.findings and list(in_order(alone)) == list(in_order(shared))
    assert {kind for _, kind in kinds(shared)} >= {"duplicate_id", "no_labels", "image_bomb", "image_broken"}
    for name in ("ids", "distinct_images"):
        assert getattr(alone, name) == getattr(shared, name)
    for name in ("num_words", "num_images", "text", "images", "truncated", "supervised", "encoded"):
        assert np.array_equal(getattr(alone, name), getattr(shared, name)), name


def test_worker_that_dies_costs_its_item_alone() -> None:
    items = list(range(40))
    items[9], items[30] = -1, -2
    pool = WorkerPool(dying_worker.square, lambda item, tried: (item, tried), workers=2)
    results = [result for chunk in pool.run(chunks_of(items, 4)) for result in chunk]
    expected: list[Any] = [item * item for item in items]
    expected[9], expected[13], expected[30] = (-1, True), (13, True), (-2, True)
    assert results == expected
    assert pool.deaths == 3


def test_items_are_no_longer_tried_once_too_many_have_killed_their_process() -> None:
    pool = WorkerPool(dying_worker.square, lambda item, tried: (item, tried), workers=1, deaths=MOST_DEATHS - 1)
    assert list(pool.run([[2, 3], [-1, -2, 4]])) == [[4, 9], [(-1, True), (-2, False), (4, False)]]


def test_workers_that_cannot_start_are_told_at_once() -> None:
    pool = WorkerPool(dying_worker.never_starts, lambda item, tried: item, workers=1)
    with pytest.raises(RuntimeError, match="--workers 0"):
        list(pool.run([[1]]))


def test_record_whose_worker_dies_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "check_conversations", dying_worker.check_conversations)
    data = [{"id": "killer" if index == 5 else f"r{index}"} for index in range(20)]
    result = checked(data, workers=1)
    assert kinds(result) == [(5, "worker_died")] and result.faulty == [5]
    assert result.ids == [record["id"] for record in data] and result.encoded.sum() == 19


# === Files ===


def test_lines_that_are_not_json_are_findings_and_whole_files_sentences(tmp_path: Path) -> None:
    good = {"id": "a", "conversations": talk("Hi", "Hello")}
    lines = tmp_path / "data.jsonl"
    lines.write_text(json.dumps(good) + "\n\n{cut\n" + json.dumps(good | {"id": "b"}) + "\n")
    result = check(read_sources([lines], "."), CheckSettings())
    assert kinds(result) == [(1, "not_json")] and result.findings[1][0].detail.startswith("line 3: ")
    assert list(result.good_objects()) == [good, good | {"id": "b"}]
    for content, words in (("[{", "neither"), ("", "no records"), ("[]", "no records"), ("a\nb", "neither")):
        lines.write_text(content)
        with pytest.raises(SourceError, match=words):
            read_objects(lines)
    lines.write_bytes(b"\xff\xfe[")
    with pytest.raises(SourceError, match="not UTF-8"):
        read_objects(lines)
    with pytest.raises(SourceError, match=r"no data file .*--data-path"):
        read_objects(tmp_path / "gone.json")


def test_mixture_names_files_folders_and_weights(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    (tmp_path / "b.json").write_text("[4]")
    mixture = tmp_path / "mix.yaml"
    mixture.write_text("sources:\n- {path: a.json, image_folder: pictures, weight: 0.5}\n- {path: b.json, name: b}\n")
    first, second = read_sources([mixture], "default")
    assert (first.objects, first.image_folder, first.weight) == ([1, 2, 3], str(tmp_path / "pictures"), 0.5)
    assert (second.objects, second.image_folder, second.weight) == ([4], "default", 1.0)
    assert [source.objects for source in read_sources([mixture, tmp_path / "b.json"], ".", limit=2)] == [[1, 2], [], []]
    for content, words in (
        ("[", "not valid YAML"),
        ("sources: [{weight: 1}]", "with a 'path'"),
        ("sources: [{path: a.json, weight: -1}]", "weight -1"),
    ):
        mixture.write_text(content)
        with pytest.raises(SourceError, match=words):
            read_sources([mixture], ".")


def test_clean_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "clean.json"
    data = [{"id": "é", "number": 1.50}, {"id": "\ud83d"}, ["kept as it is"]]
    assert write_clean(target, data) == 3 and json.loads(target.read_text()) == data
    assert write_clean(tmp_path / "clean.jsonl", data) == 3
    assert [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()] == data

    def interrupted() -> Any:
        yield {"id": "new"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clean(target, interrupted())
    assert json.loads(target.read_text()) == data
    assert {path.name for path in tmp_path.iterdir()} == {"clean.json", "clean.jsonl"}


# === The command ===


@pytest.fixture(scope="module")
def data_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = sorted(path.name for path in folder.iterdir())
    data: list[Any] = [shown(f"r{index}", name) for index, name in enumerate(names)]
    data += [{"id": "text", "conversations": talk("Hi", "Hello")}, {"id": "bad"}, {"id": "x", "conversations": []}]
    data.append(shown("two", ["good.png", "good.jpg"]) | {"conversations": talk("<image> or <image>?", "both")})
    data.append(shown("\x1b[31m", "gone\ud83d.png"))
    path = tmp_path_factory.mktemp("data") / "data.json"
    path.write_text(json.dumps(data))
    return path


def test_command_reports_and_leaves_a_file_that_trains(
    data_file: Path, folder: Path, tokenizer: str, tmp_path: Path
) -> None:
    arguments = ["--data_path", data_file, "--image-folder", folder, "--tokenizer", tokenizer, "--workers", "1"]
    outputs = ["--report", "report.json", "--text", "report.txt", "--write_clean", "clean.json", "--list-all", "all"]
    command = [warm_python(), "-m", "llava.data.check", *arguments, *outputs]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    original, clean = json.loads(data_file.read_text()), json.loads((tmp_path / "clean.json").read_text())
    report = json.loads((tmp_path / "report.json").read_text())

    assert report["records"] == len(original) and report["good"] == len(clean)
    assert report["findings"]["image_cmyk"]["records"] == 1
    assert report["findings"]["schema"]["examples"][0]["id"] == "bad" and report["findings"]["schema"]["records"] == 3
    assert set(report["budgets"]) == {"none", "duet-192", "duet-128", "duet-64"}
    lines = (tmp_path / "report.txt").read_text().splitlines()
    assert "\n".join(lines) in done.stdout and "images" in done.stderr
    assert len(lines) < 50 and max(map(len, lines)) <= 110 and not any("\x1b" in line for line in lines)
    every = [json.loads(line) for line in (tmp_path / "all").read_text().splitlines()]
    assert len(every) >= sum(kind["records"] for kind in report["findings"].values())

    places = [original.index(record) for record in clean]
    assert places == sorted(places)
    records = [parse_record(record, index) for index, record in enumerate(clean)]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    inputs = llava_inputs(llama(), processor, image_aspect_ratio="pad")
    dataset = LazySupervisedDataset(records, inputs, DataConfig(2048, visual_tokens=576, image_folder=folder))
    for index in range(len(dataset)):
        sample = dataset[index]
        assert (sample["labels"][1:] != IGNORE_INDEX).any()
        assert [tuple(image.shape) for image in sample["images"]] == [(3, 8, 8)] * len(records[index].images)


def test_exit_status_says_whether_records_have_errors(
    data_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.jsonl").write_text(json.dumps(shown("a", "cmyk.jpg")) + "\n")
    assert main(["--data-path", str(tmp_path / "good.jsonl"), "--image-folder", str(folder), "--workers", "0"]) == 0
    text = capsys.readouterr().out
    assert "1 with warnings only" in text and "image_cmyk" in text and "ESTIMATED" in text
    arguments = ["--data-path", str(data_file), "--image-folder", str(folder), "--workers", "0"]
    assert main([*arguments, "--max-bad-share", "0.9"]) == 0
    assert main([*arguments, "--max-bad-share", "0.1"]) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--write-clean", "{data}"], "which is the data itself"),
        (["--report", "{data}"], "which is the data itself"),
        (["--report", "{folder}/no/out.json"], "is not a folder"),
        (["--report", "{folder}"], "name a file"),
        (["--report", "out", "--text", "./out"], "name the same file"),
        (["--write-clean", "out", "--limit", "3"], "--limit"),
        (["--write-clean", "out", "--data-path", "mix.yaml"], "one by one"),
        (["--image-folder", "{folder}/none"], "check --image-folder"),
        (["--compression", "duet-1"], "no compression preset 'duet-1'"),
        (["--model", "gpt"], "no model 'gpt'"),
        (["--version", "v7"], "v7"),
        (["--mfu", "30"], "--mfu is 30"),
        (["--max-bad-share", "-1"], "--max-bad-share is -1"),
    ],
)
def test_wrong_options_are_told_before_anything_is_checked(
    changes: list[str], words: str, data_file: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = data_file.read_bytes()
    filled = [word.format(data=data_file, folder=folder) for word in changes]
    arguments = ["--data-path", str(data_file), "--image-folder", str(folder), "--workers", "0", *filled]
    try:
        status: Any = main(arguments)
    except SystemExit as ended:  # of the flags' own check
        status = ended.code
    assert status == 2
    assert words in capsys.readouterr().err and data_file.read_bytes() == before


def test_report_counts_records_and_keeps_twenty_examples() -> None:
    result = checked([{"id": str(index)} for index in range(30)])
    report = Report(result, figures(result, ASSUMED, MODELS["llava-1.5-7b"], CLIP_L_336), ASSUMED).to_json()
    assert report["findings"]["schema"]["records"] == 30 and len(report["findings"]["schema"]["examples"]) == 20
    assert list(report["findings"]) == list(KINDS) and report["tokens_are_estimates"] is True
    assert report["good"] == 0 and not math.isnan(report["budgets"]["none"]["mean_text_tokens"])


def test_the_check_judges_by_the_template_of_the_checkpoint_and_names_one_that_does_not_fit(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "one.json").write_text(json.dumps([shown("a", "good.png")]))
    byte_level().save_pretrained(tmp_path / "model")
    words = ["--data-path", str(tmp_path / "one.json"), "--image-folder", str(folder), "--workers", "0"]
    words += ["--tokenizer", str(tmp_path / "model"), "--report", str(tmp_path / "report.json")]
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"conversation_template": "chatml", "image_opening": "llava"})
    )
    main(words)
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["image_opening"] == "llava"
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["template"] == "chatml"
    assert "'chatml' ends an answer with '<|im_end|>', which is not one token" in caplog.text
    caplog.clear()
    (tmp_path / "model" / "config.json").write_text("{}")
    main(words)
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["image_opening"] == "upright"
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["template"] == "v1"
    assert "ends an answer" not in caplog.text
