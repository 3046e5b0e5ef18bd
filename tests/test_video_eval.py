"""Video-LLaVA answers questions about videos through every program, as the published evaluation asks them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_files_judged import WRITERS
from eval_small import read_lines
from tiny_video import FRAMES, pictures, write_video, write_video_llava

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.media_limits import MediaLimits
from llava.data.video import open_video
from llava.eval.run import main as evaluate
from llava.inference.batches import Prompt
from llava.inference.chat import Chat
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings

SETS = ("msvd", "msrvtt", "tgif", "activitynet", "vcg_generic", "vcg_temporal", "vcg_consistency")
BUDGET = "v2v: {dominant: 4, contextual: 2, cluster_width: 2}\nt2v: {layers: [1, 2], keep: [0.5, 0.25]}\n"
NEW = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_llava(tmp_path_factory.mktemp("model") / "m", layers=4, conversation_template="v1")


@pytest.fixture(scope="module")
def budget(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("budget") / "budget.yaml"
    path.write_text(BUDGET)
    return str(path)


@pytest.fixture(scope="module")
def engine(folder: Path, budget: str) -> Engine:
    return Engine.open(ModelSpec(str(folder), compression=budget), "cpu")


def by_hand(engine: Engine, question: str, video: Path) -> str:
    """The greedy answer to the published prompt: marks, a newline and the question; without a cache."""
    inputs = engine.inputs
    (clip,) = inputs.video(open_video(video, inputs.frame_numbers, inputs.image_opening), "A video")
    turn = f"{'<image>' * FRAMES}\n{question}"
    ids = inputs.prompt([turn], [clip])["input_ids"]
    assert int((ids == IMAGE_TOKEN_INDEX).sum()) == FRAMES
    prompt, answer = ids[None], []
    for _ in range(NEW):
        given = torch.cat([prompt, torch.tensor([answer], dtype=torch.long)], dim=1)
        labels = torch.where(torch.arange(given.shape[1]) < prompt.shape[1], -100, given)
        with torch.no_grad():
            logits = engine.model(given, images=[clip], labels=labels, return_logits=True).logits
        answer.append(int(logits[0, -1].argmax()))
        if answer[-1] == engine.tokenizer.eos_token_id:
            break
    return str(engine.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def test_every_set_of_questions_about_videos_is_answered_and_counted(
    folder: Path, budget: str, engine: Engine, tmp_path: Path
) -> None:
    for name in SETS:
        WRITERS[name](tmp_path / "eval")
    words = ["--model-path", str(folder), "--eval-folder", str(tmp_path / "eval"), "--device", "cpu"]
    words += ["--benchmarks", ",".join(SETS), "--output", str(tmp_path / "out"), "--compression", budget]
    assert evaluate([*words, "--max-new-tokens", str(NEW), "--batch-size", "2"]) == 0
    for name in SETS:
        (result,) = (tmp_path / "out").rglob(f"{name}.result.json")
        entered = 6 * FRAMES
        mean = (entered + entered // 2 + 2 * (entered // 4)) / 4
        assert json.loads(result.read_text())["average_tokens"] == pytest.approx(mean)
    (answers,) = (tmp_path / "out").rglob("msvd.answers.jsonl")
    question = json.loads((tmp_path / "eval/GPT_Zero_Shot_QA/MSVD_Zero_Shot_QA/test_q.json").read_text())[0]
    lines = {line["question_id"]: line["text"] for line in read_lines(answers)}
    videos = tmp_path / "eval/GPT_Zero_Shot_QA/MSVD_Zero_Shot_QA/videos"
    (video,) = videos.glob(f"{question['video_name']}*")
    assert lines[question["question_id"]] == by_hand(engine, question["question"], video)


def test_videos_are_mirrored_when_asked_for_as_the_published_evaluation_does(folder: Path, tmp_path: Path) -> None:
    video = open_video(write_video(tmp_path / "v", 5), lambda total, fps: [0, 1, 2, 3][:FRAMES])
    plain, mirrored = (
        Engine.open(ModelSpec(str(folder), limits=MediaLimits(video_flip=share)), "cpu").inputs for share in (None, 1.0)
    )
    (seen,), (other,) = plain.video(video, "A video"), mirrored.video(video, "A video")
    assert torch.equal(seen.flip(-1), other) and not torch.equal(seen, other)
    with pytest.raises(ValueError, match="at most 1"):
        MediaLimits(video_flip=2.0)
    with pytest.raises(ValueError, match="the model is none; leave it out"):
        MediaLimits(video_flip=0.5).applied_to(object())


def test_images_videos_and_text_answer_in_a_batch_as_each_by_itself(engine: Engine, tmp_path: Path) -> None:
    first, second = (write_video(tmp_path / name, count, seed=count) for name, count in (("a", 5), ("b", 2)))
    picture = next(first.iterdir())
    prompts: list[Any] = [
        Prompt("What happens?", video=first),
        Prompt("Which is red?", (picture,)),
        Prompt("Hello"),
        Prompt("And here?", video=second),
    ]
    settings = GenerationSettings(0, max_new_tokens=NEW)
    together = engine.answer(prompts, settings)
    assert together == [engine.answer([prompt], settings)[0] for prompt in prompts]
    assert together[0] == by_hand(engine, "What happens?", first)


def test_a_conversation_about_an_image_streams_and_goes_on(engine: Engine, tmp_path: Path) -> None:
    chat = Chat.over(engine, GenerationSettings(0, max_new_tokens=NEW))
    first = "".join(chat.ask("Which is red?", pictures(1)))
    assert [answer for _, answer in chat.turns] == [first]
    assert chat.answer("And the two?") == chat.turns[-1][1]


def test_the_published_number_of_frames_is_another_than_this_tower_attends_over(folder: Path, tmp_path: Path) -> None:
    words = ["--model-path", str(folder), "--eval-folder", str(tmp_path), "--device", "cpu", "--benchmarks", "msvd"]
    WRITERS["msvd"](tmp_path)
    assert evaluate([*words, "--output", str(tmp_path / "out"), "--num-frames", "8"]) == 2
