"""What a run that goes on may believe: whose answers they are, which model gave them, and on what."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from eval_files_choice import MMBENCH, mmbench_rows, write_rows, write_sqa
from eval_small import Squares, read_lines, texts, write_squares
from forked import ForkedProgram
from PIL import Image
from tiny_folder import write_model
from video_frames import read_frames

from llava.data.images import BadImageError, open_picture, open_rgb
from llava.eval.benchmarks import get_benchmark
from llava.eval.benchmarks.mmbench import table_questions
from llava.eval.benchmarks.questions import Question
from llava.eval.benchmarks.reading import read_questions
from llava.eval.run import main
from llava.eval.runner import device_workers as workers
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.fingerprint import open_checkpoint
from llava.eval.runner.result_files import BenchmarkFiles
from llava.eval.runner.sessions import counted, described
from llava.eval.scoring.benchmark_result import Result
from llava.inference.engine import Engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny", max_position_embeddings=2048)


@pytest.fixture
def ask(model: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs four squares with further words."""
    write_squares(tmp_path / "eval", count=4)

    def run(*words: str) -> int:
        base = ["--model-path", str(model), "--eval-folder", str(tmp_path / "eval"), "--output", str(tmp_path / "out")]
        return main([*base, "--max-new-tokens", "2", "--device", "cpu", *words], [Squares()])

    return run


def place(tmp_path: Path) -> BenchmarkFiles:
    return BenchmarkFiles(tmp_path / "out" / "llava-v1.5-tiny" / "own", "squares")


def stored(tmp_path: Path) -> Any:
    return json.loads(place(tmp_path).settings.read_text())


# === Nothing is lost, nothing foreign is believed ===


def test_fresh_removes_nothing_before_everything_fits(ask: Callable[..., int], tmp_path: Path, capsys):
    assert ask() == 0
    kept = {path: path.read_bytes() for path in place(tmp_path).folder.iterdir()}
    for words in (["--eval-folder", str(tmp_path)], ["--conv-mode", "plain"], ["--num-gpus", "2", "--device", "mps"]):
        assert ask("--fresh", *words) == 2, words
    assert {path: path.read_bytes() for path in place(tmp_path).folder.iterdir()} == kept


def test_parts_of_another_run_are_not_believed(ask: Callable[..., int], tmp_path: Path):
    """They come from processes that outlive a run which was killed and begun anew under other settings."""
    answers = place(tmp_path).answers
    assert ask("--limit", "2") == 0
    run = stored(tmp_path)["run"]
    lines = read_lines(write_squares(tmp_path / "more", count=4))
    said = [{"question_id": line["question_id"], "prompt": line["text"], "text": "foreign"} for line in lines]
    AnswerFile(answers.path, "0123abcd").append(0, said)
    AnswerFile(answers.path, run).append(3, [said[3] | {"text": "of this run"}])
    assert ask() == 0
    assert "foreign" not in texts(answers.path) and texts(answers.path)[3] == "of this run"
    assert not answers.all_parts() and stored(tmp_path)["run"] == run
    answers.path.unlink()
    place(tmp_path).settings.unlink()
    AnswerFile(answers.path, "0123abcd").append(0, said)
    assert ask() == 2, "nobody knows whose they are"
    assert ask("--fresh") == 0
    assert "foreign" not in texts(answers.path) and stored(tmp_path)["run"] != run
    other = AnswerFile(answers.path.with_name("squares.jsonl"))
    AnswerFile(answers.path, "0123abcd").append(0, said)
    assert not other.all_parts(), "parts of squares.answers.jsonl"


def test_an_answer_without_a_text_is_told(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "prompt": "x"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, answer 1 has no text; an answer line needs"):
        AnswerFile(tmp_path / "a.jsonl").answered([Question(1, "x")])
    (tmp_path / "a.jsonl").write_bytes(b'{"question_id": 1, "prompt": "x", "text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1 is not JSON .*remove the line or the file"):
        AnswerFile(tmp_path / "a.jsonl").answered([Question(1, "x")])


def running() -> dict[int, int]:
    """WorkerProcesses that are alive, each with the one that started it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 500
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")
def test_workers_end_with_the_process_that_deals_out(model: Path, tmp_path: Path):
    images = tmp_path / "eval" / "mm-vet" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (20, 20), (200, 10, 10)).save(images / "red.png")
    asked = [{"question_id": f"v_{n}", "image": "red.png", "text": f"Is {n} red?"} for n in range(60)]
    (images.parent / "llava-mm-vet.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    words = ["--model-path", str(model), "--eval-folder", str(tmp_path / "eval"), "--output", str(tmp_path / "out")]
    words += ["--benchmarks", "mmvet", "--batch-size", "1", "--device", "cpu", "--no-judge"]
    crowd = ["--num-gpus", "2", "--loader-workers", "1"]  # each of two processes has one that reads images for it
    answers = BenchmarkFiles(tmp_path / "out" / "llava-v1.5-tiny" / "own", "mmvet").answers
    dealing = ForkedProgram(["-m", "llava.eval.run", *words, *crowd, "--max-new-tokens", "4"])
    try:
        begun = psutil.Process(dealing.pid)
        until(lambda: len(begun.children(recursive=True)) >= 4 and bool(answers.all_parts()))
        left = {process.pid for process in begun.children(recursive=True)}
    finally:
        dealing.send_signal(signal.SIGKILL)
    assert dealing.wait() == -signal.SIGKILL
    assert main([*words, "--max-new-tokens", "1", "--fresh", "--batch-size", "8"]) == 0
    until(lambda: not left & running().keys())
    said = texts(answers.path)
    assert len(said) == 60 and not answers.all_parts()
    assert main([*words, "--max-new-tokens", "1", "--fresh", "--batch-size", "8"]) == 0
    assert texts(answers.path) == said, "none of the killed run's longer answers is among them"


# === The model, however it is reached ===


def test_a_model_is_itself_under_every_path(ask: Callable[..., int], model: Path, tmp_path: Path, monkeypatch):
    assert ask("--limit", "2") == 0
    first = read_lines(place(tmp_path).answers.path)
    copy = tmp_path / "copies" / model.name
    copy.parent.mkdir()
    shutil.copytree(model, copy, copy_function=shutil.copyfile)
    os.utime(copy / "model.safetensors", (1, 1))
    monkeypatch.chdir(model.parent)
    assert ask("--model-path", f"{model}/", "--limit", "3") == 0
    assert ask("--model-path", model.name, "--limit", "4") == 0
    monkeypatch.chdir(model)
    assert ask("--model-path", ".") == 0
    assert ask("--model-path", str(copy)) == 0
    assert read_lines(place(tmp_path).answers.path)[:2] == first
    assert Result.load(place(tmp_path).result).model == str(copy)


def test_other_files_are_another_model(model: Path, tmp_path: Path):
    def told(change: Callable[[Path], None]) -> set[str]:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(model, copy)
        change(copy)
        after = open_checkpoint(str(copy), None)[1]
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}

    def middle_of_a_weight(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        start, end = header["model.mm_projector.0.weight"]["data_offsets"]
        content[8 + length + (start + end) // 2] ^= 1
        path.write_bytes(content)

    def configured(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": "pad"}))

    before = open_checkpoint(str(model), None)[1]
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer_config.json"} <= before.keys()
    assert not told(lambda folder: (folder / "training_args.bin").write_bytes(b"x") and None)
    assert told(middle_of_a_weight) == {"model/model.safetensors"}
    assert told(configured) == {"model/config.json"}
    assert told(lambda folder: (folder / "generation_config.json").unlink()) == {"model/generation_config.json"}


def test_a_pickled_file_is_told_by_its_checksums(tmp_path: Path):
    """One of a million numbers differs, and no sample of a few places would find it."""
    from llava.eval.runner.fingerprint import _digest_of_sample

    numbers = torch.zeros(1_000_000)
    digests = []
    for at in (None, 123_457, 123_457):
        if at is not None:
            numbers[at] = 1
        torch.save({"weight": numbers}, tmp_path / "mm_projector.bin")
        digests.append(_digest_of_sample(tmp_path / "mm_projector.bin"))
    assert digests[0] != digests[1] == digests[2]


# === What the answers were given on ===


def session(device: str, answers: int, **other: Any) -> dict[str, Any]:
    versions = {"python": "3.11", "torch": other.pop("torch", "2.8")}
    return {"device": device, "versions": versions, "batch_size": 8, "num_gpus": 1, "answers": answers} | other


def test_sessions_are_counted_and_told_in_order():
    # 10 answers in all and 4 of them of the first: 6 are the second's, who was killed before counting.
    sessions = counted([session("NVIDIA H100", 4), session("NVIDIA L4", 0, torch="2.9", batch_size=16)], 10)
    assert [one["answers"] for one in sessions] == [4, 6]
    assert [one["device"] for one in counted([session("a", 4), session("b", 0)], 4)] == ["a"], "b gave none"
    assert counted([], 3) == []
    told = described({"settings": {"seed": 1}}, [*sessions, session("NVIDIA H100", 2)])
    assert told["device"] == "NVIDIA H100; NVIDIA L4"
    assert told["versions"] == {"python": "3.11", "torch": "2.8; 2.9"}
    assert told["settings"] == {"seed": 1, "batch_size": [8, 16], "num_gpus": 1}
    assert [one["answers"] for one in told["sessions"]] == [4, 6, 2]


def test_a_result_names_every_device_that_answered(ask: Callable[..., int], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(workers, "device_name", lambda device: "NVIDIA H100")
    assert ask("--limit", "1") == 0
    monkeypatch.setattr(workers, "device_name", lambda device: "NVIDIA L4")
    assert ask("--batch-size", "2") == 0
    monkeypatch.setattr(workers, "device_name", lambda device: "never asked")
    assert ask("--batch-size", "4") == 0
    result = Result.load(place(tmp_path).result)
    assert result.device == "NVIDIA H100; NVIDIA L4"
    assert result.settings["batch_size"] == [8, 2]
    assert [(one["device"], one["answers"]) for one in stored(tmp_path)["about"]["sessions"]] == [
        ("NVIDIA H100", 1),
        ("NVIDIA L4", 3),
    ]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14 GiB.\nMore."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 14 GiB.\nMore."),
    ],
)
def test_too_little_memory_is_a_sentence(error: RuntimeError, ask: Callable[..., int], monkeypatch, capsys):
    def fail(*_: object, **__: object) -> Engine:
        raise error

    first = str(error).splitlines()[0]
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "open", fail)
        assert ask() == 1
    said = capsys.readouterr().err
    assert "cpu has too little memory for the model; give --load-4bit, or use a GPU with more memory." in said
    assert f"({first})" in said and "Traceback" not in said
    monkeypatch.setattr(Engine, "generate", fail)
    assert ask() == 1
    said = capsys.readouterr().err
    assert "too little memory for this batch; give a smaller --batch-size." in said and f"({first})" in said


# === What is shown and asked ===


def test_pictures_stay_in_their_folder(tmp_path: Path):
    line = {"question_id": 1, "image": "../secret.png", "text": "What is it?"}
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(line) + "\n")
    reason = r"line 1 names the file '\.\./secret\.png', which does not lie in .*images'"
    with pytest.raises(ValueError, match=reason):
        read_questions(path, tmp_path / "images", "gqa")
    path.write_text(json.dumps(line | {"image": "/etc/passwd"}) + "\n")
    with pytest.raises(ValueError, match="names the file '/etc/passwd'"):
        read_questions(path, tmp_path / "images", "gqa")
    write_sqa(tmp_path)
    place = tmp_path / "scienceqa" / "llava_test_CQM-A.json"
    records = json.loads(place.read_text())
    place.write_text(json.dumps([record | {"image": "../../x.png"} for record in records]))
    with pytest.raises(ValueError, match=r"question 1 names the file '\.\./\.\./x\.png'"):
        get_benchmark("sqa").questions(tmp_path)
    (tmp_path / "vizwiz" / "val").mkdir(parents=True)
    answers = [{"answer": "a"}] * 10
    record = {"image": "../../x.jpg", "question": "What?", "answers": answers, "answer_type": "other"}
    (tmp_path / "vizwiz" / "val.json").write_text(json.dumps([record]))
    with pytest.raises(ValueError, match=r"question 1 names the file '\.\./\.\./x\.jpg'"):
        get_benchmark("vizwiz").questions(tmp_path)
    videos = tmp_path / "MSVD_Zero_Shot_QA"
    videos.mkdir()
    (videos / "test_q.json").write_text(json.dumps([{"video_name": "../../x", "question": "a?", "question_id": "1"}]))
    (videos / "test_a.json").write_text(json.dumps([{"answer": "b", "question_id": "1"}]))
    with pytest.raises(ValueError, match=r"record 1 names the file '\.\./\.\./x\.mp4'"):
        get_benchmark("msvd").questions(tmp_path)


def test_texts_are_asked_as_they_stand(tmp_path: Path):
    given = ["<image>\n What is it? ", "  <image> twice\n", "Is it red?\n"]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question_id": 1, "image": "a.png", "text": text}) + "\n" for text in given))
    questions = read_questions(path, tmp_path, "gqa")
    assert [question.text for question in questions] == [" What is it? ", "  <image> twice\n", "Is it red?\n"]
    assert [question.recorded_prompt for question in questions] == given


def test_mmbench_fields_that_say_none_are_text(tmp_path: Path):
    """Where LLaVA, in any case, and the reader of tables, in some, take them for nothing."""
    rows = mmbench_rows(MMBENCH[1:2])
    rows[0] |= {"hint": "NONE", "C": "nAn", "D": "fish"}
    write_rows(tmp_path / "table.tsv", rows)
    first, second = table_questions(tmp_path / "table.tsv", None)
    assert first.text == "NONE\nIs it day?\nA. yes\nB. no\nC. nAn\nD. fish"
    assert second.text == "The picture is bright.\nIs it day?\nA. no\nB. yes"


def test_content_is_read_as_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deep = io.BytesIO()
    Image.new("I;16", (4, 4), 0x8000).save(deep, format="PNG")
    (tmp_path / "deep.png").write_bytes(deep.getvalue())
    # 0x8000 >> 8 is 128
    for picture in (tmp_path / "deep.png", deep.getvalue()):
        assert open_picture(picture).getpixel((0, 0)) == (128, 128, 128)
    (tmp_path / "frames").mkdir()
    shutil.copy(tmp_path / "deep.png", tmp_path / "frames" / "1.png")
    assert read_frames(tmp_path / "frames", 1)[0].getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(BadImageError, match="The image cannot be read: "):
        open_picture(deep.getvalue()[:30])
    with pytest.raises(BadImageError, match="There is no image file"):
        open_rgb("nowhere.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.gif")
    for limit in (15, 7):  # up to twice its limit Pillow only warns of 16 pixels
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(BadImageError, match=r"The image is too large: .*16 pixels"):
            open_picture(deep.getvalue())
        for name in ("frames", "a.gif"):
            with pytest.raises(ValueError, match=r"16 pixels"):
                read_frames(tmp_path / name, 1)
