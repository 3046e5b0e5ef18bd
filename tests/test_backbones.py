"""Every family answers through the programs of LLaVA-1.5: questions, batches, streams, conversations, benchmarks."""

from __future__ import annotations

import importlib
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmms_stand_in
import pytest
import torch
import yaml
from eval_small import Squares, read_lines, write_squares
from PIL import Image
from tiny_folder import write_pictures
from tiny_onevision import LINES, write_onevision
from tiny_qwen import write_qwen
from tiny_qwen3 import write_qwen3, write_qwen3_moe
from tiny_video import write_video_llava

from llava.common.shown import printable
from llava.eval import model_vqa_loader, run_llava, vlmevalkit
from llava.eval.harnesses.harness import losses
from llava.eval.run import main as evaluate
from llava.inference.batches import Prompt
from llava.inference.chat import Chat
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.serve import cli

BOTH = {
    "v2v": {"dominant": 4, "contextual": 2, "score": "received", "cluster_width": 2},
    "t2v": {"layers": [1, 2], "keep": [0.5, 0.25], "queries": "text"},
}
QUESTION, NEW = "Where is the seven?", 6
BACKBONES: dict[str, Callable[[Path], Path]] = {
    "qwen2_5_vl": write_qwen,
    "qwen3_vl": write_qwen3,
    "qwen3_vl_moe": write_qwen3_moe,
    "llava_onevision": write_onevision,
    "video_llava": lambda folder: write_video_llava(folder, layers=4, conversation_template="v1"),
    "llava_onevision-lines": lambda folder: write_onevision(folder, template=LINES),
}
"""Folders as they are published, tiny."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3)


@pytest.fixture(scope="module")
def budget(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("budget") / "budget.yaml"
    path.write_text(yaml.safe_dump(BOTH))
    return str(path)


@pytest.fixture(scope="module", params=BACKBONES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BACKBONES[request.param](tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def engine(folder: Path, budget: str) -> Engine:
    return Engine.open(ModelSpec(str(folder), compression=budget), "cpu")


def by_hand(engine: Engine, question: str, files: list[str]) -> str:
    """The greedy answer, each token from a forward of the whole prompt without a cache."""
    inputs = engine.inputs
    media = [inputs.image(Image.open(name).convert("RGB"), name) for name in files]
    batch = inputs.batch([inputs.prompt([inputs.question(question, media)], media)])
    given = {name: value for name, value in batch.items() if name not in ("labels", "attention_mask")}
    start = given["input_ids"].shape[1]
    for _ in range(NEW):
        ids = given["input_ids"]
        labels = torch.where(torch.arange(ids.shape[1]) < start, -100, ids)
        with torch.no_grad():
            token = engine.model(**given, labels=labels, return_logits=True).logits[:, -1:].argmax(-1)
        if token.item() == engine.tokenizer.eos_token_id:
            break
        for name in ("input_ids", "query_mask", "mm_token_type_ids"):
            if name in given:
                more = token if name == "input_ids" else torch.zeros_like(token)
                given[name] = torch.cat([given[name], more.to(given[name].dtype)], 1)
    return engine.tokenizer.decode(given["input_ids"][0, start:], skip_special_tokens=True).strip()


def test_the_programs_give_the_same_answer_to_the_same_question(
    folder: Path,
    engine: Engine,
    budget: str,
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = Path(pictures[0])
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "image": picture.name, "text": QUESTION}) + "\n")
    model = ["--model-path", str(folder), "--compression", budget]
    settings = ["--temperature", "0", "--max_new_tokens", str(NEW), "--device", "cpu"]
    said = {}
    words = ["--question-file", str(tmp_path / "q.jsonl"), "--answers-file", str(tmp_path / "a.jsonl")]
    assert model_vqa_loader.main([*model, *settings, *words, "--image-folder", str(picture.parent)]) == 0
    said["evaluation"] = read_lines(tmp_path / "a.jsonl")[0]["text"]
    capsys.readouterr()
    assert run_llava.main([*model, *settings, "--image-file", str(picture), "--query", QUESTION]) == 0
    said["run_llava"] = capsys.readouterr().out.strip()
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION + "\n"))
    assert cli.main([*model, *settings, "--image-file", str(picture)]) == 0
    said["chat"] = capsys.readouterr().out.strip()
    adapter = vlmevalkit.DuetLlava(str(folder), device="cpu", max_new_tokens=NEW, compression=budget)
    message = [{"type": "image", "value": str(picture)}, {"type": "text", "value": QUESTION}]
    said["harness"] = adapter.generate_inner(message)
    expected = by_hand(engine, QUESTION, pictures[:1])
    shown = {"run_llava", "chat"}  # programs that write to a terminal
    wanted = {name: printable(expected, lines=True) if name in shown else expected for name in said}
    assert expected and said == wanted


def test_batches_of_images_and_text_answer_as_each_by_itself(engine: Engine, pictures: list[str]) -> None:
    settings = GenerationSettings(0, max_new_tokens=NEW)
    prompts = [
        Prompt(QUESTION, (Path(pictures[0]),)),
        Prompt("Is <image> like <image>?", tuple(map(Path, pictures[:2]))),
        Prompt("Hello"),
        Prompt("Which is red?", (Path(pictures[2]),)),
    ]
    together = engine.answer(prompts, settings)
    assert together == [engine.answer([prompt], settings)[0] for prompt in prompts]


@pytest.mark.parametrize("reencode", [True, False])
def test_a_conversation_streams_and_goes_on(engine: Engine, pictures: list[str], reencode: bool) -> None:
    chat = Chat.over(engine, GenerationSettings(0, max_new_tokens=NEW), reencode=reencode)
    first = "".join(chat.ask(QUESTION, [Image.open(pictures[0]).convert("RGB")]))
    assert first.strip() == by_hand(engine, QUESTION, pictures[:1])
    second = "".join(chat.ask("And the two?"))
    assert [answer for _, answer in chat.turns] == [first, second]
    if reencode:
        third = chat.answer("And here?", [Image.open(pictures[1]).convert("RGB")])
        assert chat.turns[-1][1] == third and len(chat.images) == 2
    assert chat.usage is not None


def test_a_benchmark_is_asked_in_batches_and_counts_its_tokens(folder: Path, budget: str, tmp_path: Path) -> None:
    write_squares(tmp_path / "eval", 5)
    base = ["--model-path", str(folder), "--eval-folder", str(tmp_path / "eval"), "--device", "cpu"]
    answers, seen = [], []
    for size in ("1", "3"):
        out = tmp_path / f"out-{size}"
        words = ["--output", str(out), "--compression", budget, "--batch-size", size, "--max-new-tokens", "4"]
        assert evaluate([*base, *words], [Squares()]) == 0
        (path,) = out.rglob("squares.answers.jsonl")
        answers.append(sorted((line["question_id"], line["text"]) for line in read_lines(path)))
        result = json.loads(path.with_name("squares.result.json").read_text())
        seen.append(result["average_tokens"])
    entered = 12 if "onevision" in str(folder) else 6  # two crops of such a square, and one image of 24 tokens or so
    assert seen == [(entered + entered // 2 + 2 * (entered // 4)) / 4] * 2, "mean of four layers"
    assert answers[0] == answers[1] and len(answers[0]) == 5


def test_the_model_is_saved_with_its_budget_and_opens_again(engine: Engine, folder: Path, tmp_path: Path) -> None:
    engine.model.save_pretrained(tmp_path)
    if not isinstance(engine.inputs.processor, dict):  # of LLaVA's own models it goes with the weights
        engine.inputs.processor.save_pretrained(tmp_path)
    else:
        engine.tokenizer.save_pretrained(tmp_path)
    again: Any = Engine.open(ModelSpec(str(tmp_path)), "cpu")
    assert again.model.compression == engine.model.compression
    assert type(again.model) is type(engine.model)
    for name, weight in engine.model.named_parameters():
        assert torch.equal(weight, again.model.get_parameter(name)), name


def test_lmms_eval_asks_and_scores(
    folder: Path, engine: Engine, budget: str, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, module in lmms_stand_in.modules("lmms_eval").items():
        monkeypatch.setitem(sys.modules, place, module)
    monkeypatch.delitem(sys.modules, "llava.eval.harnesses.lmms_eval_model", raising=False)
    adapter = importlib.import_module("llava.eval.harnesses.lmms_eval_model")
    model = adapter.DuetLlava(pretrained=str(folder), device="cpu", batch_size=3, compression=budget)
    shown = [[Image.open(name).convert("RGB") for name in names] for names in (pictures[:1], [], pictures[:2])]
    prompts = [
        Prompt(text, tuple(images))
        for text, images in zip(("Which?", "Hello", "Is <image> like <image>?"), shown, strict=True)
    ]
    model.task_dict = {"local": {"test": shown}}
    places = [(lambda images: images, number, "local", "test") for number in range(3)]
    asked = [
        SimpleNamespace(args=(one.text, {"max_new_tokens": NEW}, *place))
        for one, place in zip(prompts, places, strict=True)
    ]
    assert model.generate_until(asked) == engine.answer(prompts, GenerationSettings(0, max_new_tokens=NEW))
    scored = [SimpleNamespace(args=(one.text, " no", *place)) for one, place in zip(prompts, places, strict=True)]
    together = [float(result.text[0]) for result in model.loglikelihood(scored)]
    alone = [loss for prompt in prompts for loss, _ in losses(engine, [prompt], ["no"])]
    assert together == pytest.approx(alone, rel=1e-4) and all(map(math.isfinite, together))
    sys.modules.pop("llava.eval.harnesses.lmms_eval_model", None)
