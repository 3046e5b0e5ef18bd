"""The model inside lmms-eval and VLMEvalKit.

Where a harness is not installed, its adapter is tested on a stand-in of the harness's classes; the last test runs the
real lmms-eval where it is installed.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lmms_stand_in
import pytest
import torch
from PIL import Image
from tiny_folder import write_model, write_pictures

from llava.data.tokenization import encode_conversation
from llava.eval.harnesses.harness import _likelihood, losses, prompt_of
from llava.inference.chat import Chat
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model

ROOT = Path(__file__).resolve().parents[1]
GREEDY = GenerationSettings(0, max_new_tokens=8)
QUESTIONS = (
    "What digit is red?",
    "Where is the seven? Answer with one word.",
    "Is there a blue two?",
    "How many?",
    "Which colour is the four above the green nine in the picture?",
    "What is it?",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llava-v1.5-tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.open(ModelSpec(str(folder), template="vicuna_v1"), "cpu")


def adapter(monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> Iterator[ModuleType]:
    """An adapter's module, imported beside its harness or beside the stand-in of it."""
    if find_spec(package) is None:
        for place, module in lmms_stand_in.modules(package).items():
            monkeypatch.setitem(sys.modules, place, module)
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from adapter(monkeypatch, "lmms_eval", "llava.eval.harnesses.lmms_eval_model")


@pytest.fixture
def vlmevalkit(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from adapter(monkeypatch, "vlmeval", "llava.eval.vlmevalkit")


class ByChat:
    """Greedy answers to single questions through the project's own conversation class, template by template."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer, self.model, self.image_processor, _ = load_pretrained_model(str(folder), device="cpu")

    def __call__(
        self, question: str, files: list[str], new_tokens: int = 8, template: str = "vicuna_v1", **options: Any
    ) -> str:
        options |= {"max_new_tokens": new_tokens, "do_sample": False}
        chat = Chat(self.model, self.tokenizer, self.image_processor, template, **options)
        return chat.answer(question, [Image.open(name).convert("RGB") for name in files])


@pytest.fixture(scope="module")
def by_chat(folder: Path) -> ByChat:
    return ByChat(folder)


# === What both adapters stand on ===


def test_a_batch_is_answered_as_each_question_alone(by_chat: ByChat, pictures: list[str], engine: Engine):
    shown = [pictures[:1], pictures[1:3], [], pictures[2:]]
    prompts = [
        prompt_of(question, tuple(map(Image.open, files))) for question, files in zip(QUESTIONS, shown, strict=False)
    ]
    together = engine.answer(prompts, GREEDY)
    assert together == [by_chat(prompt.text, files) for prompt, files in zip(prompts, shown, strict=True)]
    assert len(set(together)) > 2, "the answers can be told apart"
    placed = prompt_of("Is <image> like <image>?", tuple(map(Image.open, pictures[:2])))
    expected = by_chat(placed.text, pictures[:2])
    assert engine.answer([placed], GREEDY) == [expected]
    too_many = prompt_of("<image> <image>\nHow many?", (Image.open(pictures[0]),))
    expected = by_chat("How many?", pictures[:1])
    assert engine.answer([too_many], GREEDY) == [expected]


def test_answers_end_at_a_stop_string_that_is_no_token(folder: Path, by_chat: ByChat, pictures: list[str]):
    with_marks = Engine.open(ModelSpec(str(folder), template="v0"), "cpu")
    prompt = prompt_of(QUESTIONS[0], (Image.open(pictures[0]),))
    expected = by_chat(prompt.text, pictures[:1], 24, "v0")
    assert with_marks.answer([prompt], GenerationSettings(0, max_new_tokens=24)) == [expected]


def test_likelihood_by_hand():
    # Over two tokens, logits (0, ln 3) are the probabilities 1/4 and 3/4. Row 0 predicts the label at 1, and so on.
    logits = torch.tensor([[0.0, math.log(3)]] * 4)
    loss, greedy = _likelihood(logits, torch.tensor([-100, -100, 1, 0]))
    assert loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2) and not greedy
    loss, greedy = _likelihood(logits, torch.tensor([-100, 1, 1, -100]))
    assert loss == pytest.approx(math.log(4 / 3)) and greedy
    assert _likelihood(logits, torch.tensor([1, -100, -100, -100])) == (math.inf, False)


def test_losses_in_a_batch_are_those_of_training(pictures: list[str], engine: Engine):
    """One by one, through the loss that training uses, whose labels move with the tokens that are left."""
    cases = [
        (QUESTIONS[0], pictures[:1], "red three"),
        (QUESTIONS[1], [], "top left"),
        (QUESTIONS[4], pictures[1:3], "no"),
    ]
    model, expected = engine.model, []
    for question, files, answer in cases:
        marked = "<image>\n" * len(files) + question
        text = encode_conversation([marked, answer], engine.tokenizer, "vicuna_v1", bool(files)).tensors()
        images = process_images([Image.open(name) for name in files], engine.inputs.processor, model.config)
        with torch.inference_mode():
            output = model(**{name: rows[None] for name, rows in text.items()}, images=images if files else None)
        expected.append(output.loss.item())
    prompts = [prompt_of(question, tuple(map(Image.open, files))) for question, files, _ in cases]
    got = losses(engine, prompts, [f" {answer}" for *_, answer in cases])
    assert [loss for loss, _ in got] == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == 3


# === lmms-eval ===


def requests_of(documents: list[dict[str, Any]], settings: list[dict[str, Any]]) -> list[SimpleNamespace]:
    def visuals(doc: dict[str, Any]) -> list[Image.Image]:
        return [Image.open(name) for name in doc["images"]]

    return [
        SimpleNamespace(args=(doc["question"], setting, visuals, number, "local", "test"))
        for number, (doc, setting) in enumerate(zip(documents, settings, strict=True))
    ]


@pytest.fixture(scope="module")
def documents(pictures: list[str]) -> list[dict[str, Any]]:
    shown = [pictures[:1], pictures[1:3], [], pictures[2:], pictures[:1], pictures[1:2]]
    return [
        {"question": question, "images": files, "choices": ["red three", "no", "top left seven"]}
        for question, files in zip(QUESTIONS, shown, strict=True)
    ]


def test_lmms_eval_answers_in_order_whatever_the_batch(
    lmms_eval: ModuleType, folder: Path, by_chat: ByChat, documents: list[dict[str, Any]]
):
    settings: list[dict[str, Any]] = [{"max_new_tokens": 8, "until": ["\n\n"], "image_aspect_ratio": "original"}] * 6
    settings[3] = {"max_new_tokens": 3, "temperature": 0, "top_p": None}
    settings[4] = {"max_new_tokens": 8, "temperature": 1.0, "do_sample": False}
    settings[5] = {"max_new_tokens": 8, "temperature": 0, "top_p": 0, "num_beams": None}  # as lmms-eval's pope_full
    expected = [
        by_chat(doc["question"], doc["images"], setting["max_new_tokens"])
        for doc, setting in zip(documents, settings, strict=True)
    ]
    for size in (1, "4"):
        model = lmms_eval.DuetLlava(pretrained=str(folder), batch_size=size, device="cpu")
        model.task_dict = {"local": {"test": documents}}
        assert model.generate_until(requests_of(documents, settings)) == expected
    assert model.is_simple and model.device.type == "cpu" and model.batch_size == 4


def test_lmms_eval_follows_what_a_task_sets(
    lmms_eval: ModuleType, folder: Path, documents: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    model = lmms_eval.DuetLlava(pretrained=str(folder), device="cpu")
    model.task_dict = {"local": {"test": documents}}
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        Engine, "answer", lambda _, prompts, settings: seen.append(settings.options()) or [""] * len(prompts)
    )
    greedy = {"do_sample": False, "temperature": 1.0, "top_p": 1, "num_beams": 1, "max_new_tokens": 1024}
    for setting, expected in (
        ({}, greedy),
        ({"temperature": 0, "top_p": 0, "num_beams": None, "max_new_tokens": None}, greedy),
        ({"temperature": 0.7, "top_p": 0}, greedy),
        ({"temperature": 0.7, "top_p": 0.9, "do_sample": False, "num_beams": 3}, greedy | {"num_beams": 3}),
        ({"temperature": 0.7, "top_p": 0.9}, greedy | {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
    ):
        model.generate_until(requests_of(documents[:1], [setting]))
        assert seen.pop() == expected, setting
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        model.generate_until(requests_of(documents[:1], [{"temperature": 0.7, "top_p": 1.5}]))


def test_lmms_eval_cuts_answers_where_a_task_says(lmms_eval: ModuleType, folder: Path, documents: list[dict[str, Any]]):
    model = lmms_eval.DuetLlava(pretrained=str(folder), device="cpu")
    model.task_dict = {"local": {"test": documents}}
    (whole,) = model.generate_until(requests_of(documents[:1], [{"max_new_tokens": 8}]))
    middle = whole[len(whole) // 2]
    cut = model.generate_until(requests_of(documents[:1], [{"max_new_tokens": 8, "until": middle}]))
    assert cut == [whole.split(middle)[0].strip()] != [whole]


def test_lmms_eval_takes_a_budget_and_refuses_what_it_cannot(
    lmms_eval: ModuleType, folder: Path, by_chat: ByChat, documents: list[dict[str, Any]]
):
    dense = lmms_eval.DuetLlava(pretrained=str(folder), compression="none", device="cpu", conv_template="v1")
    dense.task_dict = {"local": {"test": documents}}
    said = dense.generate_until(requests_of(documents[:1], [{"max_new_tokens": 8}]))
    expected = by_chat(documents[0]["question"], documents[0]["images"], compression="none")
    assert said == [expected] != [by_chat(documents[0]["question"], documents[0]["images"])]
    request = requests_of(documents[:1], [{}])[0]
    request.args = (*request.args[:2], lambda doc: [{"audio": 1}], *request.args[3:])
    with pytest.raises(ValueError, match="A task shows a dict; this model takes images"):
        dense.generate_until([request])
    for words, reason in (
        ({}, "has no pretrained="),
        ({"pretrained": str(folder), "batch_size": "auto"}, "batch_size is 'auto'"),
        ({"pretrained": str(folder), "compression": "duet-9"}, "duet-9"),
        ({"pretrained": str(folder), "conv_template": "nothing", "device": "cpu"}, "no conversation template"),
    ):
        with pytest.raises(ValueError, match=reason):
            lmms_eval.DuetLlava(**words)


def test_lmms_eval_gets_losses_of_continuations(
    lmms_eval: ModuleType, folder: Path, documents: list[dict[str, Any]], engine: Engine
):
    model = lmms_eval.DuetLlava(pretrained=str(folder), device="cpu", batch_size=4)
    model.task_dict = {"local": {"test": documents}}
    requests, expected = [], []
    for number, request in enumerate(requests_of(documents, [{}] * 6)):
        context, _, *place = request.args
        images = tuple(Image.open(name) for name in documents[number]["images"])
        for choice in documents[number]["choices"]:
            requests.append(SimpleNamespace(args=(context, f" {choice}", *place)))
            expected.append(losses(engine, [prompt_of(context, images)], [choice])[0][0])
    assert [result.text[0] for result in model.loglikelihood(requests)] == pytest.approx(expected, rel=1e-4)
    by_function = SimpleNamespace(args=(*requests[0].args[:1], lambda doc: doc["choices"][0], *requests[0].args[2:]))
    unconditional = SimpleNamespace(args=("", "red three"))
    first, alone = model.loglikelihood([by_function, unconditional])
    assert first.text[0] == pytest.approx(expected[0], rel=1e-4)
    assert alone.text[0] == pytest.approx(losses(engine, [prompt_of("")], ["red three"])[0][0], rel=1e-4)


def test_lmms_eval_goes_on_round_by_round(
    lmms_eval: ModuleType, folder: Path, by_chat: ByChat, documents: list[dict[str, Any]]
):
    """The second question is made from the first answer; what came before is handed back to the task."""
    model = lmms_eval.DuetLlava(pretrained=str(folder), device="cpu")
    model.task_dict = {"local": {"test": documents}}
    images = [Image.open(name) for name in documents[0]["images"]]
    seen = []

    def next_round(doc: dict[str, Any], previous_output: list[str], round_idx: int, previous_round_info: Any) -> tuple:
        seen.append((list(previous_output), round_idx, previous_round_info))
        over = round_idx == 2
        return (
            None if over else images,
            None if over else f"Why {previous_output[-1]}?",
            over,
            previous_output,
            round_idx,
        )

    context, setting, visuals, *place = requests_of(documents[:1], [{"max_new_tokens": 4}])[0].args
    (said,) = model.generate_until_multi_round([SimpleNamespace(args=(context, setting, visuals, next_round, *place))])
    first = by_chat(context, documents[0]["images"], 4)
    second = by_chat(f"Why {first}?", documents[0]["images"], 4)
    assert said == [first, second]
    assert seen == [([first], 1, None), ([first, second], 2, 1)]


def test_lmms_eval_finds_the_model_by_its_manifest(lmms_eval: ModuleType):
    from llava.eval.lmms_eval_plugin import manifest

    found = manifest()
    assert found.model_id == "duet_llava"
    module, _, name = found.simple_class_path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is lmms_eval.DuetLlava


# === VLMEvalKit ===


def test_vlmevalkit_answers_messages(vlmevalkit: ModuleType, folder: Path, by_chat: ByChat, pictures: list[str]):
    model = vlmevalkit.DuetLlava(str(folder), device="cpu", max_new_tokens=8)
    text = {"type": "text", "value": QUESTIONS[0]}
    images = [{"type": "image", "value": name} for name in pictures[:2]]
    assert model.generate_inner([images[0], text], "MME") == by_chat(QUESTIONS[0], pictures[:1], template="llava_v1")
    assert model.generate_inner([text]) == by_chat(QUESTIONS[0], [], template="llava_v1")
    between = [images[0], {"type": "text", "value": "or <image>"}, images[1], text]
    expected = by_chat(f"<image>\nor <image>\n{QUESTIONS[0]}", pictures[:2], template="llava_v1")
    assert model.generate_inner(between) == expected
    with pytest.raises(ValueError, match="type 'audio'"):
        model.generate_inner([{"type": "audio", "value": "a.wav"}])
    with pytest.raises(ValueError, match="no image file"):
        model.generate_inner([{"type": "image", "value": "nowhere.png"}, text])


def test_vlmevalkit_asks_for_letters_as_llava_does(vlmevalkit: ModuleType, folder: Path):
    line = {"index": 7, "hint": math.nan, "question": "What?", "A": "cat", "B": "dog", "C": math.nan, "D": None}
    letter = "Answer with the option's letter from the given choices directly."
    assert vlmevalkit.choice_prompt(line) == f"What?\nA. cat\nB. dog\n{letter}"
    assert (
        vlmevalkit.choice_prompt({"question": "几条？", "hint": "看", "A": "二"})
        == "看\n几条？\nA. 二\n请直接回答选项字母。"
    )
    assert vlmevalkit.choice_prompt({"question": "What?"}) == "What?\nAnswer the question directly."
    if find_spec("vlmeval") is not None and hasattr(sys.modules["vlmeval"], "__file__"):
        return  # the real one would fetch the dataset
    model = vlmevalkit.DuetLlava(str(folder), device="cpu")
    assert model.use_custom_prompt("MMBench_DEV_EN") and not model.use_custom_prompt("TextVQA_VAL")
    message = model.build_prompt(line, "MMBench_DEV_EN")
    assert message == [
        {"type": "image", "value": "MMBench_DEV_EN/7.jpg"},
        {"type": "text", "value": vlmevalkit.choice_prompt(line)},
    ]


# === The real lmms-eval ===


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_the_real_lmms_eval_runs_local_tasks(folder: Path, pictures: list[str], engine: Engine, tmp_path: Path):
    """Six questions, whose answers are known from here; one is written down wrongly, so five of six are expected."""
    assert "duet_llava" in {point.name for point in entry_points(group="lmms_eval.models")}
    choices, documents = ["red three", "no", "top left seven"], []
    for number, question in enumerate(QUESTIONS):
        image = pictures[number % len(pictures)]
        prompt = prompt_of(question, (Image.open(image),))
        (answer,) = engine.answer([prompt], GREEDY)
        each = [loss for loss, _ in losses(engine, [prompt] * len(choices), choices)]
        documents.append(
            {
                "question": question,
                "image": image,
                "choices": choices,
                "answer": answer if number else "wrong",
                "likeliest": each.index(min(each)) if number else each.index(max(each)),
            }
        )
    (tmp_path / "questions.json").write_text(json.dumps(documents))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lmms_eval",
            "--model",
            "duet_llava",
            "--batch_size",
            "2",
            "--device",
            "cpu",
            "--model_args",
            f"pretrained={folder}",
            "--tasks",
            "duet_local,duet_local_choice",
            "--include_path",
            str(ROOT / "tests" / "lmms_tasks"),
            "--output_path",
            str(tmp_path / "out"),
        ],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    found = list((tmp_path / "out").rglob("*results.json"))  # lmms-eval exits with 0 after an error, too
    assert len(found) == 1, done.stdout + done.stderr
    results = json.loads(found[0].read_text())["results"]
    assert results["duet_local"]["as_expected,none"] == pytest.approx(5 / 6)
    assert results["duet_local_choice"]["acc,none"] == pytest.approx(5 / 6)


# === Odd values ===


def test_text_of_a_harness_is_asked_whatever_it_spells(engine: Engine, pictures: list[str]):
    image = Image.open(pictures[0])
    for text, asked in {"a <ima<image>ge> b": "a  b", "half \ud800": "half \ufffd", "<image> <image>": ""}.items():
        prompts = [prompt_of(text), prompt_of(asked)]
        assert prompts[0].text == prompts[1].text == asked
        assert len(set(engine.answer(prompts, GREEDY))) == 1
    assert prompt_of("a <ima<image>ge>", (image,)).text == "a <ima<image>ge>", "one mark, one image: it goes there"
    [loss], [expected] = (losses(engine, [prompt_of("Why?")], [answer]) for answer in ("so \ud800", "so \ufffd"))
    assert loss == expected


def test_a_message_of_vlmevalkit_shows_the_images_it_holds_and_no_other(
    vlmevalkit: ModuleType, folder: Path, pictures: list[str]
):
    model = vlmevalkit.DuetLlava(str(folder), device="cpu", max_new_tokens=8)
    shown = {"type": "image", "value": pictures[0]}

    def answer(*texts: str) -> str:
        return str(model.generate_inner([shown, *({"type": "text", "value": text} for text in texts)]))

    assert answer("<ima<image>ge> Why?") == answer("<ima", "ge> Why?") == answer(" Why?") != answer("How many?")
    for message, reason in {
        '[{"type": "image", "value": null}]': "the image None; it must be a path",
        '[{"type": "text"}]': "the text None; it must be text",
        '[{"value": "x"}]': "a part of type None",
        '["What?"]': "the part 'What\\?'",
    }.items():
        with pytest.raises(ValueError, match=reason):
            model.generate_inner(json.loads(message))


def test_values_that_no_harness_can_mean_are_said_in_words(
    lmms_eval: ModuleType, vlmevalkit: ModuleType, folder: Path, documents: list[dict[str, Any]]
):
    for settings in (
        {"num_frames": 0},
        {"num_frames": "x"},
        {"batch_size": "\u00b2"},
        {"batch_size": 10**40},
        {"load_8bit": "maybe"},
        {"device": "gpu"},
        {"conv_template": "plain"},
    ):
        with pytest.raises(ValueError, match="|".join(["device", "plain", *settings])):
            lmms_eval.DuetLlava(**{"pretrained": str(folder), "device": "cpu"} | settings)
    for settings in ({"max_new_tokens": "7"}, {"max_new_tokens": 2.5}, {"temperature": True}, {"model_path": None}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
            vlmevalkit.DuetLlava(**{"model_path": str(folder), "device": "cpu"} | settings)
    with pytest.raises(ValueError, match="device is 'gpu', which torch does not know"):
        load_pretrained_model(str(folder), device="gpu")
    model = lmms_eval.DuetLlava(pretrained=str(folder), device="cpu")
    model.task_dict = {"local": {"test": [{"question": None, "images": []}, *documents]}}
    with pytest.raises(ValueError, match="A question is None"):
        model.generate_until(requests_of([{"question": None}], [{}]))
    with pytest.raises(ValueError, match="`until` is 3"):
        model.generate_until(requests_of([{"question": "Why?"}], [{"until": 3, "max_new_tokens": 2}]))
