"""Benchmarks from end to end: what is asked, written, counted and scored, and what a kill or an error leaves behind."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import yaml
from eval_files_choice import WRITERS as OF_CHOICE
from eval_files_judged import WRITERS as JUDGED
from eval_files_vqa import WRITERS as OF_VQA
from eval_small import JudgedSquares, Squares, read_lines, texts, write_squares
from forked import ForkedProgram
from PIL import Image
from tiny_folder import write_model

from llava.compression.config import CompressionConfig
from llava.cost.flops import average_visual_tokens, visual_tokens_per_layer
from llava.cost.machine import summary
from llava.cost.shapes import VisionShape
from llava.data.families.llava import LlavaInputs
from llava.eval.benchmarks import NAMES
from llava.eval.benchmarks.questions import Question
from llava.eval.run import PAPER, main, output_folder, parse
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.device_workers import Assignment, WorkerMessage, _work
from llava.eval.runner.exit_status import WorkerError
from llava.eval.runner.flags import COMPRESSION_DEFAULTS, compression_name
from llava.eval.runner.from_flags import template_of
from llava.eval.runner.result_files import BenchmarkFiles
from llava.eval.runner.scored import choose_judge
from llava.eval.score import main as score
from llava.eval.scoring.benchmark_result import Result
from llava.inference.batches import Task
from llava.inference.engine import ModelSpec
from llava.inference.generation import GenerationSettings

WRITERS = {**OF_VQA, **OF_CHOICE, **JUDGED}
JUDGE_VARIABLES = ("LLAVA_JUDGE_URL", "LLAVA_JUDGE_KEY", "LLAVA_JUDGE_MODEL", "OPENAI_API_KEY")
PLAIN: dict[str, Any] = {"v2v": None, "t2v": None}


@pytest.fixture(autouse=True)
def no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in JUDGE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny", max_position_embeddings=2048)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A root with nine questions."""
    write_squares(tmp_path / "eval")
    return tmp_path / "eval"


@pytest.fixture
def ask(model: Path, squares: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the squares with further words."""

    def run(*words: str, benchmark: Any = None) -> int:
        base = ["--model-path", str(model), "--eval-folder", str(squares), "--output", str(tmp_path / "out")]
        return main([*base, "--device", "cpu", *words], [benchmark or Squares()])

    return run


def place(tmp_path: Path, budget: str = "own", name: str = "squares") -> BenchmarkFiles:
    return BenchmarkFiles(tmp_path / "out" / "llava-v1.5-tiny" / budget, name)


# === All benchmarks ===


@pytest.fixture(scope="module")
def everything(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of every benchmark in batches of four."""
    folder = tmp_path_factory.mktemp("everything")
    for write in WRITERS.values():
        write(folder / "eval")
    words = ["--model-path", str(model), "--eval-folder", str(folder / "eval"), "--out", str(folder / "scores.json")]
    words += ["--benchmarks", ",".join(WRITERS), "--batch-size", "4", "--max-new-tokens", "4", "--device", "cpu"]
    assert main([*words, "--no-judge", "--num-frames", "3"]) == 0
    return folder


@pytest.mark.slow
def test_every_benchmark_is_asked_and_scored(everything: Path, model: Path):
    assert set(WRITERS) == set(NAMES)
    folder = everything / "results" / "llava-v1.5-tiny" / "own"
    headlines = {}
    for name in NAMES:
        result = Result.load(folder / f"{name}.result.json")
        assert result.complete and result.num_questions >= 6, name
        assert (result.benchmark, result.model, result.compression) == (name, str(model), "own")
        assert result.compression_config == CompressionConfig.from_dict(tiny.DUET).to_dict()
        # DUET keeps 7 + 3 tokens in layers 0 and 1, half of them in 2 and 3, a fifth in 4 and 5; a video has 3 frames.
        frames = 3 if name in ("msvd", "msrvtt", "tgif", "activitynet") or name.startswith("vcg_") else 1
        entered = 10 * frames
        assert result.average_tokens == pytest.approx((2 * entered + 2 * (entered // 2) + 2 * (entered // 5)) / 6)
        assert {"python", "torch", "transformers", "duet-llava"} <= set(result.versions)
        assert "cores" in result.device and result.date and result.seconds is not None and result.seconds > 0
        assert result.settings["batch_size"] == 4 and result.settings["conv_mode"] == "vicuna_v1"
        lines = read_lines(folder / f"{name}.answers.jsonl")
        assert len(lines) == result.num_questions
        assert {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"} <= set(lines[0])
        assert {line["model_id"] for line in lines} == {"llava-v1.5-tiny"}
        assert len({line["answer_id"] for line in lines}) == len(lines)
        if result.headline is not None:
            headlines[result.title] = result.headline
    assert json.loads((everything / "scores.json").read_text()) == headlines
    assert {"POPE", "SQA-I", "VQA-T", "MME", "GQA"} <= set(headlines)
    assert not list(folder.glob("*.rank*"))


@pytest.mark.slow
def test_answers_are_scored_again_without_a_model(everything: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = everything / "results" / "llava-v1.5-tiny" / "own"
    before = {path: Result.load(path) for path in sorted(folder.glob("*.result.json"))}
    for path in before:
        path.unlink()
    assert score([str(everything / "results"), "--out", str(tmp_path / "again.json")]) == 0
    assert "GQA" in capsys.readouterr().out
    for path, result in before.items():
        new = Result.load(path)
        assert (new.values, new.headline, new.average_tokens) == (result.values, result.headline, result.average_tokens)
    again, first = (json.loads(path.read_text()) for path in (tmp_path / "again.json", everything / "scores.json"))
    assert again == first
    assert score([str(tmp_path)]) == 2
    assert "no answers of llava.eval.run" in capsys.readouterr().err


# === What is answered and counted ===


def test_batches_answer_what_single_questions_get(ask: Callable[..., int], tmp_path: Path):
    said = []
    for size, ahead in ((1, 0), (4, 2), (16, 0)):
        assert ask("--batch-size", str(size), "--loader-workers", str(ahead), "--fresh") == 0
        said.append(texts(place(tmp_path).answers.path))
    assert said[0] == said[1] == said[2]
    assert len(set(said[0])) > 4, "the questions can be told apart"
    lines = read_lines(place(tmp_path).answers.path)
    assert [line["question_id"] for line in lines] == [0, 1, 1, *range(3, 9)]
    assert place(tmp_path).submission.with_name("squares.submission.txt").read_text().split() == [
        str(line["question_id"]) for line in lines
    ]
    result = Result.load(place(tmp_path).result)
    assert result.values == {"said": 9.0} and result.notes == ("Counted.",)


@pytest.mark.parametrize("name", ["DUET", "TO_ZERO", "T2V_ONLY", "none"])
def test_the_tokens_that_layers_see_are_those_of_the_plan(ask: Callable[..., int], tmp_path: Path, name: str):
    budget = PLAIN if name == "none" else getattr(tiny, name)
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(budget))
    compression = CompressionConfig.from_dict(budget)
    vision = VisionShape(layers=4, width=16, mlp=32, patches=16, patch_values=588)
    planned = average_visual_tokens(visual_tokens_per_layer(compression, 6, vision))
    words = ["--compression", str(tmp_path / f"{name}.yaml"), "--batch-size", "3", "--limit", "4"]
    for more in ([], ["--num_beams", "2"]):
        assert ask(*words, *more, "--fresh") == 0
        result = Result.load(place(tmp_path, name).result)
        assert result.average_tokens == pytest.approx(planned)
        assert result.compression_config == compression.to_dict()


def test_samples_follow_the_seed(ask: Callable[..., int], tmp_path: Path):
    said = []
    for seed in ("1", "1", "2"):
        assert ask("--temperature", "1", "--seed", seed, "--fresh") == 0
        said.append(texts(place(tmp_path).answers.path))
    assert said[0] == said[1] != said[2]


def test_budgets_have_names():
    def named(chosen: Any, **flags: Any) -> str:
        options = SimpleNamespace(**COMPRESSION_DEFAULTS | flags)
        return compression_name(options, CompressionConfig.resolve(chosen))

    assert named("duet-192", compression="duet-192") == "duet-192"
    assert named("duet-192") == "duet-192", "a checkpoint that carries a preset"
    assert named(None) == "none"
    assert named(tiny.DUET) == "own"
    assert named(tiny.DUET, dominant=7).startswith("flags-")
    assert named(tiny.DUET, dominant=7) != named(tiny.V2V_ONLY, dominant=7)
    assert named("duet-64", dominant=72) == "duet-64"


# === Going on ===


def test_what_is_answered_is_not_asked_again(ask: Callable[..., int], tmp_path: Path):
    assert ask("--limit", "4") == 0
    first = read_lines(place(tmp_path).answers.path)
    result = Result.load(place(tmp_path).result)
    assert (result.num_answered, result.num_questions, result.complete) == (4, 9, False)
    assert "4 of 9 questions were answered; the numbers are about these." in result.notes
    assert ask() == 0
    assert read_lines(place(tmp_path).answers.path)[:4] == first
    assert Result.load(place(tmp_path).result).complete
    whole = read_lines(place(tmp_path).answers.path)
    assert ask() == 0
    assert read_lines(place(tmp_path).answers.path) == whole


def test_what_a_kill_left_is_merged_and_a_torn_line_is_asked_again(ask: Callable[..., int], tmp_path: Path):
    assert ask() == 0
    lines = place(tmp_path).answers.path.read_text().splitlines(keepends=True)
    answers = AnswerFile(place(tmp_path).answers.path, json.loads(place(tmp_path).settings.read_text())["run"])
    answers.path.write_text("".join(lines[6:8]))
    answers.part(0).write_text(lines[3] + lines[0] + lines[8][:40])
    answers.part(1).write_text(lines[5] + lines[6] + lines[2])
    assert ask() == 0
    merged = read_lines(answers.path)
    assert [line["text"] for line in merged] == [json.loads(line)["text"] for line in lines]
    kept = {line["answer_id"] for line in merged} & {json.loads(line)["answer_id"] for line in lines}
    assert len(kept) == 6, "the second of two equal questions, the fifth and the ninth, which was torn, were missing"
    assert not answers.all_parts()


def test_a_whole_answer_without_a_line_break_is_an_answer(ask: Callable[..., int], tmp_path: Path):
    """Editors leave the last line break out."""
    assert ask() == 0
    whole = place(tmp_path).answers.path.read_text()
    place(tmp_path).answers.path.write_text(whole.removesuffix("\n"))
    assert ask() == 0
    assert Result.load(place(tmp_path).result).complete
    assert read_lines(place(tmp_path).answers.path) == [json.loads(line) for line in whole.splitlines()]


@pytest.mark.parametrize("sessions", [[{}], ["cpu"], [{"answers": "all"}], {}])
def test_sessions_that_were_edited_are_refused_in_a_sentence(
    sessions: object, ask: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert ask("--limit", "1") == 0
    settings = json.loads(place(tmp_path).settings.read_text())
    settings["about"]["sessions"] = sessions
    place(tmp_path).settings.write_text(json.dumps(settings))
    assert ask() == 2
    said = capsys.readouterr().err
    assert "session" in said and "remove it and the answers beside it" in said and "Traceback" not in said


def test_changed_settings_are_refused(
    ask: Callable[..., int], model: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert ask("--limit", "2") == 0
    before = place(tmp_path).answers.path.read_text()
    for words, change in (
        (["--temperature", "0.5"], "temperature was 0.0 and is 0.5 now"),
        (["--max-new-tokens", "3"], "max_new_tokens was 6 and is 3 now"),
        (["--conv-mode", "llava_v1"], 'conv_mode was "vicuna_v1" and is "llava_v1" now'),
        (["--dtype", "bfloat16"], 'dtype was "float32" and is "bfloat16" now'),
    ):
        assert ask(*words) == 2
        said = capsys.readouterr().err
        assert change in said and "--fresh removes them and starts anew" in said
    assert place(tmp_path).answers.path.read_text() == before
    questions = squares / "squares" / "questions.jsonl"
    questions.write_text(questions.read_text().replace("seven", "eight"))
    assert ask() == 2
    assert "the questions are not the same" in capsys.readouterr().err
    assert ask("--fresh") == 0
    kept = (model / "generation_config.json").read_bytes()
    (model / "generation_config.json").write_text('{"repetition_penalty": 1.5}')
    try:
        assert ask() == 2
        assert "generation_config.json of the model is another" in capsys.readouterr().err
    finally:
        (model / "generation_config.json").write_bytes(kept)
    place(tmp_path).settings.unlink()
    assert ask() == 2
    assert "squares.settings.json, which says what they belong to, is gone" in capsys.readouterr().err


def test_an_unreadable_image_costs_its_question_only(
    ask: Callable[..., int], squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = squares / "squares" / "images"
    whole = (images / "5.png").read_bytes()
    (images / "5.png").write_bytes(whole[:40])
    (images / "7.png").unlink()
    assert ask("--batch-size", "4", "--out", str(tmp_path / "scores.json")) == 1
    said = capsys.readouterr().err
    assert "SQ: 2 questions have no answer" in said
    assert "question 5 (number 6): Image file" in said and "5.png' cannot be read" in said
    assert "question 7 (number 8): There is no image file" in said
    result = Result.load(place(tmp_path).result)
    assert (result.num_answered, result.complete) == (7, False)
    assert json.loads((tmp_path / "scores.json").read_text()) == {}
    assert "scores.json leaves out SQ, where answers are missing" in said
    (images / "5.png").write_bytes(whole)
    Image.new("RGB", (20, 20)).save(images / "7.png")
    assert ask() == 0
    assert Result.load(place(tmp_path).result).complete


def test_a_question_that_is_too_long_costs_itself_only(ask: Callable[..., int], squares: Path, tmp_path: Path, capsys):
    path = squares / "squares" / "questions.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace("Is there", "Is there " + "seven " * 3000)
    path.write_text("\n".join(lines) + "\n")
    assert ask() == 1
    assert "tokens, but the model can number 2048" in capsys.readouterr().err
    assert Result.load(place(tmp_path).result).num_answered == 8


def test_two_runs_do_not_write_the_same_file(ask: Callable[..., int], tmp_path: Path, capsys):
    path = place(tmp_path).answers.path
    code = (
        "import sys; from pathlib import Path; from llava.eval.runner.answer_file import AnswerFile\n"
        "with AnswerFile(Path(sys.argv[1])).locked(): print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "mine\n"
    assert ask("--limit", "1") == 2
    assert f"Another run is writing {path}" in capsys.readouterr().err
    other.kill()
    other.communicate()
    assert ask("--limit", "1") == 0


# === Several processes, and kills ===


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Act in the background once a condition holds."""

    def wait() -> None:
        end = time.monotonic() + 600
        while not condition():
            if time.monotonic() > end:
                return
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def answered(answers: Any) -> int:
    return sum(path.read_text().count("\n") for path in (answers.path, *answers.all_parts()) if path.exists())


@pytest.mark.slow
def test_any_kill_and_another_number_of_devices_lose_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    OF_VQA["gqa"](tmp_path / "eval")
    (path,) = (tmp_path / "eval" / "gqa").glob("llava_gqa_*.jsonl")
    lines = read_lines(path)
    many = [line | {"text": f"{n} {line['text']}"} for n in range(25) for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in many))
    words = ["--model-path", str(model), "--eval-folder", str(tmp_path / "eval"), "--output", str(tmp_path / "out")]
    words += ["--benchmarks", "gqa", "--batch-size", "1", "--max-new-tokens", "4", "--device", "cpu"]
    answers = place(tmp_path, name="gqa").answers

    alone = ForkedProgram(["-m", "llava.eval.run", *words])
    when(lambda: answered(answers) >= 3, lambda: alone.send_signal(signal.SIGKILL)).join()
    assert alone.wait() == -signal.SIGKILL
    first = answered(answers)
    assert 3 <= first < len(many)

    others = {child.pid for child in multiprocessing.active_children()}  # of this test process

    def kill_one() -> None:
        workers = {child.pid for child in multiprocessing.active_children()} - others
        os.kill(workers.pop() or 0, signal.SIGKILL)

    def advanced() -> bool:  # by two processes, unless one is so late that the other has nearly finished
        said = answered(answers)
        return said >= first + 4 and (len(answers.all_parts()) == 2 or said >= len(many) - 10)

    killer = when(advanced, kill_one)
    assert main([*words, "--num-gpus", "2"]) == 1
    killer.join()
    said = capsys.readouterr().err
    assert "was killed by signal 9 (the system does that where memory runs out)" in said
    assert "the same command goes on from there" in said
    second = read_lines(answers.path)
    assert len(second) >= first + 4 and not answers.all_parts()
    assert main(words) == 0
    whole = read_lines(answers.path)
    assert [line["question_id"] for line in whole] == [line["question_id"] for line in many]
    assert [line["prompt"] for line in whole] == [line["text"] for line in many]
    assert all(line in whole for line in second), "nothing was asked twice"
    assert Result.load(place(tmp_path, name="gqa").result).complete
    assert main([*words, "--fresh", "--batch-size", "8"]) == 0
    assert texts(answers.path) == [line["text"] for line in whole]


def test_what_a_worker_cannot_do_is_told(model: Path, tmp_path: Path):
    """In this process; a worker that is told nothing more ends."""
    keeps = signal.getsignal(signal.SIGINT)
    threads = torch.get_num_threads()
    spec = ModelSpec(str(model), compression=PLAIN, dtype="float32", template="vicuna_v1")
    settings = GenerationSettings(0, max_new_tokens=4)
    try:
        ours, theirs = multiprocessing.Pipe()
        _work(theirs, dataclasses.replace(spec, path=str(tmp_path)), "cpu", 0, 2)
        failure = ours.recv()
        assert isinstance(failure, ValueError) and "has no config.json" in str(failure)
        ours.send(Assignment(AnswerFile(tmp_path / "nowhere" / "a.jsonl"), settings, "tiny"))
        ours.send(Task((0,), (Question(0, "Is it red?"),)))
        ours.send(None)
        _work(theirs, spec, "cpu", 0, 2)
        assert "cores" in ours.recv()
        assert ours.recv() is WorkerMessage.NEXT
        failure = ours.recv()
        assert isinstance(failure, WorkerError) and str(failure).startswith("FileNotFoundError: ")
        ours.close()
        _work(theirs, spec, "cpu", 0, 2)
    finally:
        signal.signal(signal.SIGINT, keeps)
        torch.set_num_threads(threads)


def test_devices_are_counted():
    assert summary(["H100", "H100", "CPU"]) == "2 x H100, CPU"


# === Judges ===


def test_a_judge_is_asked_where_the_environment_names_one(
    ask: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert ask(benchmark=JudgedSquares()) == 0
    spot = place(tmp_path, name="judged_squares")
    assert Result.load(spot.result).judge is None and Result.load(spot.result).headline == 100
    monkeypatch.setenv("LLAVA_JUDGE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("LLAVA_JUDGE_MODEL", "broken")
    assert ask(benchmark=JudgedSquares()) == 1
    assert "JSQ could not be scored: The judge cannot be reached." in capsys.readouterr().err
    monkeypatch.setenv("LLAVA_JUDGE_MODEL", "kind")
    assert ask(benchmark=JudgedSquares()) == 0
    result = Result.load(spot.result)
    assert result.headline == 50 and result.judge is not None
    assert (result.judge["model"], result.judge["answered_as"]) == ("kind", ["kind-2026"])
    assert (result.num_answered, result.num_counted, result.complete) == (9, 8, False), "one answer has no grade"
    assert spot.reviews.exists()
    capsys.readouterr()
    assert ask("--no-judge", "--out", str(tmp_path / "scores.json"), benchmark=JudgedSquares()) == 0
    assert Result.load(spot.result) == result, "the judge's numbers stay"
    assert f"No judge was asked this time; these are the judge's numbers of {result.date}" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text()) == {}, "one answer does not count"
    lines = read_lines(spot.answers.path)
    spot.answers.path.write_text("".join(json.dumps(line | {"text": "other"}) + "\n" for line in lines))
    assert ask("--no-judge", benchmark=JudgedSquares()) == 0
    assert Result.load(spot.result).headline == 100, "other answers were not judged"
    assert Result.load(spot.result).judge is None
    assert choose_judge(True, [Squares()]) is None
    assert ask("--fresh", "--limit", "1", "--no-judge", benchmark=JudgedSquares()) == 0
    assert not spot.reviews.exists()


# === The command line ===


def test_what_does_not_fit_is_a_sentence(
    ask: Callable[..., int], squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for words, reason in (
        (["--model-path", str(tmp_path / "nowhere")], "There is no folder"),
        (["--compression", "duet-1"], "There is no compression preset 'duet-1'"),
        (["--compression", "pyramiddrop"], "the decoder has 6 layers"),
        (["--conv-mode", "nothing"], "no conversation template 'nothing'"),
        (["--conv-mode", "plain"], "has no roles to ask in"),
        (["--batch-size", "0"], "--batch-size is 0; it must be 1 or more"),
        (["--limit", "0"], "--limit is 0"),
        (["--num-gpus", "0"], "--num-gpus is 0"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--load-4bit", "--load-8bit"], "are both given"),
        (["--device", "toaster"], "--device is 'toaster'"),
        (["--eval-folder", str(tmp_path)], "questions.jsonl is missing"),
    ):
        assert ask(*words) == 2, words
        assert reason in capsys.readouterr().err, words
    assert not list(place(tmp_path).folder.glob("*.jsonl"))
    assert main(["--model-path", "x", "--benchmarks", "gqa,nope"]) == 2
    assert "There is no benchmark 'nope'" in capsys.readouterr().err


def test_defaults_are_the_papers():
    options = parse(["--model-path", "runs/finetune", "--out", "runs/results.json"])
    assert options.benchmarks.split(",") == list(PAPER) and options.temperature == 0
    assert output_folder(options) == Path("runs/results")
    assert output_folder(parse(["--model-path", "x"])) == Path("results")
    assert output_folder(parse(["--model-path", "x", "--out", "a/b.json", "--output", "c"])) == Path("c")
    assert template_of(LlavaInputs, "llava-v1.5-7b") == template_of(LlavaInputs, "finetune") == "vicuna_v1"
    assert template_of(LlavaInputs, "llava-llama-2-7b") == "llava_llama_2"
