"""Names from outside lead to one place below --output, and faults of disks are those of one question or of the run."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from eval_small import Squares, read_lines, write_squares
from tiny_folder import write_model

from llava.common import atomic_write
from llava.data import images
from llava.eval import model_vqa, run
from llava.eval.judging.judge import VerdictFile
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.result_files import LONGEST_NAME, folder_name, result_file
from llava.mm_utils import model_name_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny")
    (folder / "below").mkdir()
    return folder


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    write_squares(tmp_path / "eval", 4)
    return ["--eval-folder", str(tmp_path / "eval"), "--output", str(tmp_path / "out"), "--device", "cpu"]


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"}


@pytest.mark.parametrize("written", ["..", "../", "./..", "../below/.."])
def test_a_model_called_by_two_points_has_its_results_below_output(
    model: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.chdir(model / "below")
    before = files_below(tmp_path)
    assert run.main(["--model-path", written, "--max-new-tokens", "2", *words], [Squares()]) == 0
    new = files_below(tmp_path) - before
    assert new and all(path.parts[:3] == ("out", "llava-v1.5-tiny", "own") for path in new)
    monkeypatch.chdir(model)
    assert model_name_of(".") == "llava-v1.5-tiny" and model_name_of("owner/name") == "name"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "/", "a\0b", "\ud800"])
def test_names_that_lead_elsewhere_name_no_folder(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder of results") as caught:
        folder_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["llava", "..x", "a b", "CON", "new\nline", "ä中", "-x", "\udcff", "a" * LONGEST_NAME])
def test_other_names_stay_what_they_are(name: str, tmp_path: Path) -> None:
    assert folder_name(name) == name
    (tmp_path / name).mkdir()


def test_long_names_are_cut_and_stay_different(tmp_path: Path) -> None:
    names = {folder_name("ä" * 150 + end) for end in ("", "a", "b", "ä" * 9000)}
    assert len(names) == 4
    for name in names:
        (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    "place", ["", " ", ".", "..", "/", "x/", "x/.", "x/..", "a\0b", "\ud800", "y" * 300, "folder", "/dev/null", "asked"]
)
def test_an_answers_file_that_is_none_is_refused_and_nothing_is_moved(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.txt").write_text("years of work")
    (tmp_path / "asked").write_text(json.dumps({"question_id": 1, "text": "Why?"}))
    before = files_below(tmp_path)
    words = ["--model-path", str(model), "--question-file", "asked", "--image-folder", ".", "--answers-file", place]
    assert model_vqa.main([*words, "--device", "cpu"]) == 2
    said = capsys.readouterr().err.strip()
    assert "--answers-file is" in said and said.isprintable()
    assert files_below(tmp_path) == before


def test_a_file_of_results_may_be_new_or_replace_another(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    for name in ("old.json", "new.json", "deep/er/new.json", "new\nline", ".hidden"):
        assert result_file(tmp_path / name, "--out") == tmp_path / name


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP])
def test_an_image_on_a_failing_disk_costs_its_question_only(
    model: Path,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    whole = images.open_rgb

    def failing(picture: Any, *args: Any) -> Any:
        if Path(picture).name == "0.png":
            raise OSError(number, os.strerror(number), str(picture))
        return whole(picture, *args)

    monkeypatch.setattr(images, "open_rgb", failing)
    command = ["--model-path", str(model), "--max-new-tokens", "2", *words]
    assert run.main(command, [Squares()]) == 1
    said = capsys.readouterr().err
    assert "1 questions have no answer" in said and os.strerror(number) in said and "Traceback" not in said
    monkeypatch.undo()
    assert run.main(command, [Squares()]) == 0, "the question is asked again"


def test_names_of_images_that_no_file_system_takes_cost_their_question_only(model: Path, tmp_path: Path) -> None:
    write_squares(tmp_path / "eval", 1)
    names = ["0.png", "x" * 300, "a/" * 3000 + "x", "a\tb.png", "\u202e.png", "\x80.png", "0.png/", "\n", "images"]
    lines = [{"question_id": number, "image": name, "text": "Why?"} for number, name in enumerate(names)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:7] + lines[8:]))
    command = ["--model-path", str(model), "--question-file", str(tmp_path / "asked.jsonl"), "--device", "cpu"]
    command += ["--image-folder", str(tmp_path / "eval/squares/images"), "--answers-file", str(tmp_path / "a.jsonl")]
    assert model_vqa.main([*command, "--max_new_tokens", "2"]) == 1
    assert {line["question_id"] for line in read_lines(tmp_path / "a.jsonl")} <= {0, 6}


def test_a_full_disk_keeps_what_was_answered_and_says_what_to_do(
    model: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = os.fsync
    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(handle)

    monkeypatch.setattr(atomic_write.os, "fsync", full)
    command = ["--model-path", str(model), "--max-new-tokens", "2", "--batch-size", "1", *words]
    assert run.main(command, [Squares()]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device; make room" in said and "squares.answers" in said
    answers = tmp_path / "out/llava-v1.5-tiny/own/squares.answers.jsonl"
    kept = read_lines(answers)
    assert len(kept) == 2
    monkeypatch.undo()
    assert run.main(command, [Squares()]) == 0
    assert len(read_lines(answers)) == 4 and all(line in read_lines(answers) for line in kept)


def test_what_a_full_disk_takes_in_part_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    answers, reviews = AnswerFile(tmp_path / "a.jsonl", "ab"), tmp_path / "r.jsonl"
    answers.append(0, [{"question_id": 1}])
    with VerdictFile(reviews) as file:
        file.add({"request": "1", "judge": "j", "content": "yes"})
        before = (answers.part(0).read_bytes(), reviews.read_bytes())
        with monkeypatch.context() as broken:
            broken.setattr(atomic_write.os, "fsync", failing)
            with pytest.raises(OSError, match="Input/output error; make room or mend the disk"):
                answers.append(0, [{"question_id": 2}])
            with pytest.raises(OSError, match=r"r\.jsonl"):
                file.add({"request": "2", "judge": "j", "content": "yes"})
        assert (answers.part(0).read_bytes(), reviews.read_bytes()) == before
        file.add({"request": "3", "judge": "j", "content": "no"})
    file.add({"request": "4", "judge": "j", "content": "no"})
    assert [line["request"] for line in read_lines(reviews)] == ["1", "3"], "a closed file takes nothing"
