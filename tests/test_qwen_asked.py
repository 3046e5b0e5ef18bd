"""Qwen2.5-VL in programs that ask: batches, conversations with and without a cache, benchmarks' figures, losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_qwen import write_qwen

from llava.data.check import command as check
from llava.data.media_limits import MediaLimits
from llava.data.records import parse_record
from llava.data.tokens import RecordEncoder
from llava.eval.harnesses.harness import losses
from llava.inference.batches import Prompt, Task
from llava.inference.chat import Chat
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings

SHARES = {
    "v2v": {"dominant": 0.5, "contextual": 0.25, "cluster_width": 2, "score": "received"},
    "t2v": {"layers": [2, 3], "keep": [0.5, 0.25]},
}
GREEDY = GenerationSettings(max_new_tokens=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.open(ModelSpec(str(folder), compression=SHARES), "cpu")


def picture(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(width)
    return Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8))


PROMPTS = [
    Prompt("What digit is red?", (picture(40, 30),)),
    Prompt("Is there a blue two?"),
    Prompt("Is <image> like <image>?", (picture(32, 32), picture(90, 31))),
]


@pytest.mark.parametrize("budget", ["none", SHARES], ids=["none", "shares"])
def test_tasks_are_answered_as_single_questions_and_visual_tokens_are_counted(engine: Engine, budget: Any) -> None:
    settings = GenerationSettings(max_new_tokens=5, more={"compression": budget})
    (outcome,) = engine.answer_tasks([Task((0, 1, 2), tuple(PROMPTS))], settings)
    assert list(outcome.texts.values()) == [engine.answer([prompt], settings)[0] for prompt in PROMPTS]
    assert not outcome.problems and outcome.visual_tokens.keys() == {0, 2}
    # counted where they were prepared; shares of each image by hand
    sizes = [[len(medium.ids) - 2 for medium in engine.sample(prompt)["images"]] for prompt in PROMPTS]
    for number, counted in outcome.visual_tokens.items():
        entered = sum(sizes[number])
        if budget != "none":
            entered = sum(max(int(size * 0.5), 1) + max(int(size * 0.25), 1) for size in sizes[number])
            entered = (2 * entered + int(entered * 0.5) + int(entered * 0.25)) / 4
        assert counted == entered


@pytest.mark.parametrize("budget", ["none", SHARES], ids=["none", "shares"])
def test_a_conversation_streams_and_its_questions_choose_by_the_rule(engine: Engine, budget: Any) -> None:
    inputs = engine.inputs
    anew, kept = (Chat.over(engine, GREEDY, compression=budget, reencode=reencode) for reencode in (True, False))
    first = [Image.fromarray(np.asarray(picture(40, 30)))]
    for chat in (anew, kept):
        pieces = list(chat.ask("What digit is red?", first))
        assert len(pieces) > 0 and "".join(pieces).strip() == chat.turns[0][1]
        chat.answer("And <|im_end|> where?")
    media = [inputs.image(first[0], "It")]
    for chat, voting in ((anew, -1), (kept, 0)):
        turns = [*chat._turns[:3]]
        batch = engine.batch([inputs.prompt(turns, media, voting)])
        del batch["labels"]
        said = engine.generate(batch, GREEDY, compression=chat.compression).texts[0]
        assert said == chat.turns[1][1]
        assert chat.usage is not None and chat.usage.patches == len(media[0].ids) - 2
    with pytest.raises(ValueError, match="Images cannot be added to a conversation with reencode=False"):
        kept.ask("And this?", first)


def test_the_loss_of_a_given_answer_is_that_of_its_tokens(engine: Engine) -> None:
    answers = ["red three", "no", "seven"]
    together = losses(engine, PROMPTS, answers)
    alone = [losses(engine, [prompt], [answer])[0] for prompt, answer in zip(PROMPTS, answers, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-4) and one[1] == other[1]
    engine.model.set_compression("none")
    try:
        media = engine.media(PROMPTS[0])
        sample = engine.inputs.conversation([engine.inputs.question(PROMPTS[0].text, media), answers[0]], media)
        batch = engine.batch([sample])
        labels = batch.pop("labels")[0]
        del batch["query_mask"]
        with torch.no_grad():
            shares = engine.model(**batch).logits[0].log_softmax(dim=-1)
        picked = [-float(shares[place - 1, label]) for place, label in enumerate(labels.tolist()) if label >= 0]
        assert losses(engine, PROMPTS[:1], answers[:1])[0][0] == pytest.approx(sum(picked) / len(picked), rel=1e-4)
    finally:
        engine.model.set_compression(SHARES)


def test_limits_hold_for_what_is_asked(folder: Path) -> None:
    limited = Engine.open(ModelSpec(str(folder), limits=MediaLimits(max_pixels=1024)), "cpu")
    (medium,) = limited.sample(Prompt("What?", (picture(90, 80),)))["images"]
    assert len(medium.ids) - 2 <= 16
    with pytest.raises(ValueError, match="--video_fps was given, but the model has no processor of videos here"):
        Engine.open(ModelSpec(str(folder), limits=MediaLimits(video_fps=1.0)), "cpu")


def test_a_question_about_a_video_is_a_problem_in_words_without_torchvision(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    picture(40, 30).save(tmp_path / "clip/0.png")
    (outcome,) = engine.answer_tasks([Task((0, 1), (Prompt("Where?", video=tmp_path / "clip"), PROMPTS[1]))], GREEDY)
    assert "needs torchvision, which is not installed" in outcome.problems[0] and 1 in outcome.texts


def test_the_data_check_counts_text_as_training_does(folder: Path, engine: Engine, tmp_path: Path) -> None:
    for name in ("a.png", "clip/0.png", "clip/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(40, 30).save(tmp_path / name)
    said = [("What digit is red?", "red three"), ("<image>\nWhich?", "no"), ("Is <video> or <image> blue?", "seven")]
    files: list[dict[str, str]] = [{}, {"image": "a.png"}, {"video": "clip", "image": "a.png"}]
    records = [
        {
            "id": str(number),
            **shown,
            "conversations": [{"from": "human", "value": turn}, {"from": "gpt", "value": answer}],
        }
        for number, ((turn, answer), shown) in enumerate(zip(said, files, strict=True))
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    words = ["--data-path", str(tmp_path / "data.json"), "--image-folder", str(tmp_path), "--model", str(folder)]
    words += ["--compression", "none", "--workers", "0", "--report", str(tmp_path / "report.json")]
    words += ["--model-max-length", "100000"]  # of the tiny patches a usual picture has thousands
    assert check.main(words) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    texts = []
    for record in map(parse_record, records, range(3)):
        encoded = RecordEncoder(engine.inputs).encode(record)
        texts.append(len(encoded.input_ids) - encoded.num_images)
    assert json.dumps(found).count(f'"mean_text_tokens": {sum(texts) / 3}') == 1
    assert check.main([*words, "--version", "v1"]) == 2
    (tmp_path / "bad.json").write_text(json.dumps([records[1] | {"image": "gone.png"}]))
    assert check.main([*words, "--data-path", str(tmp_path / "bad.json")]) == 1


def test_the_data_check_names_images_that_the_models_processor_refuses(folder: Path, tmp_path: Path) -> None:
    sizes = {"thin.png": (1, 500), "wide.png": (30_000, 200), "good.png": (40, 30)}
    talk = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "no"}]
    for name, size in sizes.items():
        Image.new("1", size).save(tmp_path / name)
    (tmp_path / "data.json").write_text(json.dumps([{"image": name, "conversations": talk} for name in sizes]))
    words = ["--data-path", str(tmp_path / "data.json"), "--image-folder", str(tmp_path), "--model", str(folder)]
    words += ["--compression", "none", "--workers", "0", "--report", str(tmp_path / "report.json")]
    assert check.main(words) == 1
    errors = {
        name: [example["detail"] for example in found["examples"]]
        for name, found in json.loads((tmp_path / "report.json").read_text())["findings"].items()
        if found["severity"] == "error" and found["records"]
    }
    (detail,) = errors.pop("image_refused")
    assert detail.startswith("thin.png is 1x500, which the model's processor refuses: absolute aspect ratio")
    assert errors == {}, "a wide image is not padded to a square here"
    assert check.main([*words, "--images", "header"]) == 0
