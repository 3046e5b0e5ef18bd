"""A program never writes over what it reads, however the output names it, and into no folder of somebody else's."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_machine import ROOT
from PIL import Image
from test_study import SETTINGS

from llava.bench.gpu_check.record import place_of
from llava.checkpoints import conversion
from llava.common.outputs import claim_folder, require_apart
from llava.eval import cost, eval_gpt_review_bench, eval_science_qa, eval_video_qa, model_vqa
from llava.eval.runner import vqa_command
from llava.eval.runner.answer_file import AnswerFile
from llava.serve import cli
from llava.train.checkpoint import remove_checkpoints
from llava.train.own_inputs import require_inputs_kept
from playground.study.place import Place
from playground.world import __main__ as world

sys.path.insert(0, str(ROOT / "scripts"))
import convert_gqa_for_eval
import convert_mmvet_for_eval
import convert_seed_for_submission
import convert_vizwiz_for_submission
import extract_mm_projector

Main = Callable[[Sequence[str]], Any]
CONTENT = '{"question_id": 1, "prompt": "p", "text": "t"}\n'


def same_files(path: Path) -> list[Path]:
    """Ways to name a file: itself, around a corner, by a link, by a hard link."""
    other = path.parent / "elsewhere"
    other.mkdir(exist_ok=True)
    link, hard = other / f"link{path.suffix}", other / f"hard{path.suffix}"
    link.symlink_to(path)
    os.link(path, hard)
    return [path, other / ".." / path.name, link, hard]


def refused(main: Main, words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a program says before it ends with a status that is not 0."""
    try:
        status = main(words)
    except SystemExit as error:
        status = error.code
        if isinstance(status, str):
            return status
    assert status not in (None, 0), words
    return capsys.readouterr().err


PROGRAMS: dict[str, tuple[Main, str, list[str]]] = {
    "gqa": (convert_gqa_for_eval.main, "--dst", ["--src", "{0}"]),
    "mmvet": (convert_mmvet_for_eval.main, "--dst", ["--src", "{0}"]),
    "seed": (
        convert_seed_for_submission.main,
        "--result-upload-file",
        ["--annotation-file", "{0}", "--result-file", "{1}"],
    ),
    "vizwiz": (
        convert_vizwiz_for_submission.main,
        "--result-upload-file",
        ["--annotation-file", "{1}", "--result-file", "{0}"],
    ),
    "reviews": (
        eval_gpt_review_bench.main,
        "--output",
        ["--question", "{0}", "--context", "{1}", "--answer-list", "{1}", "{1}"],
    ),
    "sqa": (eval_science_qa.main, "--output-file", ["--base-dir", "{folder}", "--result-file", "{0}"]),
    "videos": (eval_video_qa.main, "--output_json", ["--pred_path", "{0}", "--output_dir", "{folder}/v"]),
    "questions": (model_vqa.main, "--answers-file", ["--question-file", "{0}", "--model-path", "nowhere"]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_input_named_as_output_stays_as_it_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_JUDGE_URL", "http://localhost:9/v1")
    main, flag, words = PROGRAMS[name]
    inputs = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    line = {"id": 1, "question": "q", "answer": "a", "pred": "p"}
    content = json.dumps(line) + "\n" if name == "videos" else CONTENT
    for path in inputs:
        path.write_text(content)
    given = [word.format(*inputs, folder=tmp_path) for word in words]
    for output in same_files(inputs[0]):
        said = refused(main, [*given, flag, str(output)], capsys)
        assert f"{flag} is {str(output)!r}, which this command reads; name another file." in said
    said = refused(main, [*given, flag, str(tmp_path)], capsys)
    assert f"{flag} is {str(tmp_path)!r}" in said and "name a file" in said and "is a folder" in said
    assert [path.read_text() for path in inputs] == [content] * 2


def test_no_file_of_a_model_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "mm_projector.bin").write_bytes(b"weights")
    for main, words, name in (
        (cost.main, ["--model-path", str(model), "--json"], "config.json"),
        (extract_mm_projector.main, ["--model-path", str(model), "--output"], "mm_projector.bin"),
    ):
        for output in same_files(model / name):
            said = refused(main, [*words, str(output)], capsys)
            assert f"is {str(output)!r}, a file of {str(model)!r}, which this command reads" in said
    assert (model / "config.json").read_text() == "{}" and (model / "mm_projector.bin").read_bytes() == b"weights"
    (model / "cost.json").write_text("of an earlier measurement")
    require_apart({"--json": model / "cost.json", "--text": "/dev/stdout", "--none": None}, [model, "duet-192", None])
    for place in (model / "sub", tmp_path / "link/sub"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(model)
        with pytest.raises(ValueError, match=r"lies in .*, which is read; name a folder outside of it"):
            conversion.convert(str(model), place, "llava")
    assert {path.name for path in model.iterdir()} == {"config.json", "cost.json", "elsewhere", "mm_projector.bin"}


def test_the_photo_that_a_chat_shows_is_not_drawn_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), "red").save(photo)
    before = photo.read_bytes()
    for output in same_files(photo):
        words = ["--model-path", "nowhere", "--image-file", str(photo), "--save-overlay", str(output)]
        assert "--save-overlay is" in refused(cli.main, words, capsys)
    session = cli.Session(
        SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace()), turns=[], reencode=True),  # type: ignore[arg-type]
        SimpleNamespace(save_overlay=photo, image_opening=None),  # type: ignore[arg-type]
        [],
    )
    with pytest.raises(ValueError, match=r"--save-overlay is .*photo\.png.*which this command reads"):
        session._add("/image", str(photo))
    assert photo.read_bytes() == before


def arguments(output: Path, **given: Any) -> tuple[Any, Any, Any]:
    """Arguments of a training, as far as their places matter."""
    model = {
        "model_name_or_path": "a/b",
        "vision_tower": None,
        "image_tower": None,
        "video_tower": None,
        "pretrain_mm_mlp_adapter": None,
        "tune_mm_mlp_adapter": True,
    }
    data = {"data_path": "data.json", "eval_data_path": None, "image_folder": None, "video_folder": None}
    training = {"output_dir": str(output), "lora_weight_path": ""}
    return tuple(
        SimpleNamespace(**{name: given.get(name, value) for name, value in group.items()})
        for group in (model, data, training)
    )


def test_training_does_not_write_over_its_model_or_data(tmp_path: Path) -> None:
    output = tmp_path / "run"
    (output / "checkpoint-8").mkdir(parents=True)
    (output / "config.json").write_text("[]")
    (output / "mm_projector.bin").write_text("")
    (tmp_path / "link").symlink_to(output)
    for name in ("model_name_or_path", "vision_tower", "lora_weight_path", "image_folder"):
        for place in (output, tmp_path / "link", output / "checkpoint-8", f"{output}/."):
            with pytest.raises(ValueError, match=f"would write over --{name} .*choose another --output_dir"):
                require_inputs_kept(*arguments(output, **{name: str(place)}))
    for name, file in (("data_path", "config.json"), ("pretrain_mm_mlp_adapter", "mm_projector.bin")):
        with pytest.raises(ValueError, match=f"would write over --{name}"):
            require_inputs_kept(*arguments(output, **{name: str(output / file)}))
    (output / "data.json").write_text("[]")
    (output / "base").mkdir()
    kept = {"data_path": str(output / "data.json"), "model_name_or_path": str(output / "base")}
    require_inputs_kept(*arguments(output, **kept, image_folder=str(tmp_path)))
    require_inputs_kept(*arguments(tmp_path / "new", model_name_or_path=str(output)))


def test_programs_that_fill_a_folder_leave_one_that_is_not_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    (mine / "images/train").mkdir(parents=True)
    (mine / "images/train/000000.png").write_bytes(b"a photo")
    (mine / "pretrain.json").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["world", "--out", str(mine)])
    with pytest.raises(SystemExit, match=r"not empty and was not made by playground\.world"):
        world.main()
    with pytest.raises(ValueError, match="holds something else than a study"):
        Place.open(mine, SETTINGS)
    with pytest.raises(ValueError, match="which is a file"):
        claim_folder(mine / "pretrain.json", "llava.bench.data_memory", "--folder")
    with pytest.raises(ValueError, match="holds something else than results"):
        place_of(mine / "pretrain.json")
    claim_folder(tmp_path / "new/one", "somebody", "--out")
    claim_folder(tmp_path / "new/one", "somebody", "--out")
    with pytest.raises(ValueError, match="was not made by another"):
        claim_folder(tmp_path / "new/one", "another", "--out")
    assert (mine / "pretrain.json").read_text() == "mine" and len(list(mine.rglob("*"))) == 4


def test_a_run_that_begins_anew_removes_checkpoints_alone(tmp_path: Path) -> None:
    for name, file in (("checkpoint-1", "trainer_state.json"), ("checkpoint-2", "thesis.tex"), ("checkpoint-3", None)):
        (tmp_path / name).mkdir()
        if file:
            (tmp_path / name / file).write_text("{}")
    remove_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds a model that no run here wrote .* choose another --output_dir"):
        require_inputs_kept(*arguments(tmp_path))


def test_a_file_that_holds_no_answers_of_ours_is_set_aside_not_removed(tmp_path: Path) -> None:
    answers = AnswerFile(tmp_path / "notes.jsonl")
    answers.path.write_text("mine")
    job = SimpleNamespace(answers=answers, settings=tmp_path / "notes.settings.json", open=lambda fresh: None)
    vqa_command._open(job, True)  # type: ignore[arg-type]
    assert (tmp_path / "notes.jsonl.former").read_text() == "mine" and not answers.path.exists()
