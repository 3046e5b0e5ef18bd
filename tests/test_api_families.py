"""The API around models of other families: their templates, the order of what is sent, and videos."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api_server import MODEL, ApiServer, Gate, data_url, until
from PIL import Image
from test_api_hostile import in_base64, showing
from test_qwen_asked import SHARES
from test_video_decoding import film as write_film
from tiny_backbones import BUDGET, WRITERS
from tiny_qwen import write_qwen
from tiny_video import pictures, write_video_llava

from llava.data.video import open_video
from llava.inference.batches import Prompt
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.serve.api.completion_fields import AskingDefaults, read_completion
from llava.serve.api.request_reader import RequestReader
from llava.serve.limits import ServingLimits

QUESTION = "What digit is red?"
GREEDY = GenerationSettings(0, max_new_tokens=6)
DEFAULTS = AskingDefaults(MODEL, 0.0)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.open(ModelSpec(str(write_qwen(tmp_path_factory.mktemp("qwen")))), "cpu")


@pytest.fixture(scope="module")
def video_llava(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.open(ModelSpec(str(write_video_llava(tmp_path_factory.mktemp("video")))), "cpu")


def image(picture: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(picture)}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def request(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": list(content)}], "max_tokens": 6} | fields


def prompt_of(engine: Engine, body: dict[str, Any]) -> list[int]:
    """Ids that the model is asked for a request."""
    read = RequestReader(engine, DEFAULTS, ServingLimits()).read(json.dumps(body).encode())
    ids: list[int] = read.sample["input_ids"].tolist()
    return ids


@pytest.mark.parametrize("behind", [False, True])
def test_the_prompt_of_qwen_is_what_its_own_chat_template_writes(qwen: Engine, behind: bool) -> None:
    """In the order in which the parts were sent, with a system prompt and an answer in between."""
    pictures = [Image.new("RGB", size, "red") for size in ((40, 30), (32, 32))]
    first = [image(pictures[0]), text("What is it?")]
    last = [text("And this one?"), image(pictures[1]), text("Or both?")]
    if behind:
        first.reverse()
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": first},
        {"role": "assistant", "content": "A picture."},
        {"role": "user", "content": last},
    ]
    shown = [part if part["type"] == "text" else {"type": "image"} for part in first]
    told = [part if part["type"] == "text" else {"type": "image"} for part in last]
    their = [
        {"role": "system", "content": [text("Be short.")]},
        {"role": "user", "content": shown},
        {"role": "assistant", "content": [text("A picture.")]},
        {"role": "user", "content": told},
    ]
    written = qwen.tokenizer.apply_chat_template(
        their, chat_template=qwen.inputs._template(), tokenize=False, add_generation_prompt=True
    )
    (pad,) = qwen.tokenizer("<|image_pad|>", add_special_tokens=False).input_ids
    counts = iter([ids.count(pad) for ids in (qwen.inputs.image(one, "It").ids for one in pictures)])
    expected = []
    for token in qwen.tokenizer(written, add_special_tokens=False).input_ids:
        expected += [pad] * next(counts) if token == pad else [token]
    assert next(counts, None) is None
    ids = prompt_of(qwen, {"model": MODEL, "messages": messages})
    assert ids == expected


@pytest.mark.parametrize("budget", ["none", SHARES], ids=["none", "shares"])
def test_qwen_is_asked_in_batches_and_as_in_other_programs(qwen: Engine, budget: Any) -> None:
    pictures = [Image.new("RGB", (48, 30), colour) for colour in ("red", "blue")]
    settings = GenerationSettings(0, max_new_tokens=6, more={"compression": budget})
    expected = [qwen.answer([Prompt(QUESTION, (picture,))], settings)[0] for picture in pictures]
    with ApiServer(qwen) as server:
        for picture, answer in zip(pictures, expected, strict=True):
            reply = server.post(request(image(picture), text(QUESTION), n=2, compression=budget)).json
            assert [choice["message"]["content"] for choice in reply["choices"]] == [answer] * 2
            sizes = qwen.sample(Prompt(QUESTION, (picture,)))["images"][0].ids
            visual = len(sizes) - 2
            entered = visual if budget == "none" else int(visual * 0.5) + int(visual * 0.25)
            mean = visual if budget == "none" else (2 * entered + int(entered * 0.5) + int(entered * 0.25)) / 4
            assert reply["usage"]["visual_tokens"] == {
                "before": visual,
                "after_v2v": entered,
                "average_over_layers": mean,
            }
        refused = server.post(showing(in_base64(b"x", "video/mp4"), "video_url"))
        assert refused.status == 400 and refused.error["code"] == "invalid_video"


@pytest.mark.parametrize("family", WRITERS)
def test_every_family_is_served_and_rows_of_a_batch_are_those_alone(family: str, tmp_path: Path) -> None:
    """Prompts of different lengths in one batch, under the budget and without one."""
    engine = Engine.open(ModelSpec(str(WRITERS[family](tmp_path, layers=4))), "cpu")
    shown = [pictures(1, 90, 61)[0], *pictures(1, 40, 40, seed=1)]
    asked = [Prompt("Hello"), Prompt(QUESTION, tuple(shown[:1])), Prompt("Which is larger?", tuple(shown))]
    gate = Gate(engine)
    with ApiServer(engine) as server, ThreadPoolExecutor(7) as threads:
        first = threads.submit(server.post, request(text("Hello")))
        until(lambda: gate.batches == [1])
        replies = {}
        for budget in ("none", BUDGET):
            for number, prompt in enumerate(asked):
                body = request(*map(image, prompt.images), text(prompt.text), compression=budget)
                replies[str(budget), number] = threads.submit(server.post, body)
        until(lambda: len(server.service._rows) == 6)
        gate.open()
        assert first.result().status == 200
        answered = {key: reply.result().json for key, reply in replies.items()}
        assert gate.batches == [1, 3, 3]
    for budget in ("none", BUDGET):
        settings = GenerationSettings(0, max_new_tokens=6, more={"compression": budget})
        for number, prompt in enumerate(asked):
            reply = answered[str(budget), number]
            assert reply["choices"][0]["message"]["content"] == engine.answer([prompt], settings)[0]
            visual = reply["usage"]["visual_tokens"]
            assert (visual["after_v2v"] < visual["before"]) == (budget == BUDGET and number > 0)


def animation(frames: list[Image.Image]) -> bytes:
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def jpeg(frame: Image.Image) -> str:
    file = io.BytesIO()
    frame.save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def film(folder: Path) -> bytes:
    return write_film(folder / "film.mp4", 12).read_bytes()


def sent_as_gif(folder: Path) -> tuple[str, Path]:
    content = animation(pictures(12))
    (folder / "video.gif").write_bytes(content)
    return in_base64(content, "image/gif"), folder / "video.gif"


def sent_as_film(folder: Path) -> tuple[str, Path]:
    return in_base64(film(folder), "video/mp4"), folder / "film.mp4"


def sent_as_frames(folder: Path) -> tuple[str, Path]:
    frames = [jpeg(frame) for frame in pictures(11)]
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        (folder / "frames" / f"{number:02}.jpg").write_bytes(base64.b64decode(frame))
    return f"data:video/jpeg;base64,{','.join(frames)}", folder / "frames"


@pytest.mark.parametrize("sent", [sent_as_gif, sent_as_film, sent_as_frames])
def test_a_video_is_answered_as_the_file_is(
    video_llava: Engine, tmp_path: Path, sent: Callable[[Path], tuple[str, Path]]
) -> None:
    url, path = sent(tmp_path)
    frames = open_video(path, video_llava.inputs.frame_numbers, video_llava.inputs.image_opening)
    video = {"type": "video_url", "video_url": {"url": url}}
    picture = pictures(1)[0]
    for content, asked in (
        ([video, text(QUESTION)], Prompt(QUESTION, (frames,))),
        ([image(picture), video, text(QUESTION)], Prompt(QUESTION, (picture, frames))),
        ([text("In <video>:"), video, text("where?")], None),
    ):
        ids = prompt_of(video_llava, request(*content))
        if asked is not None:
            assert ids == video_llava.sample(asked)["input_ids"].tolist()
        else:
            media = video_llava.media(Prompt("x", (frames,)))
            turn = video_llava.inputs.question("In \ufdd0video>:\n<video>\nwhere?", media)
            assert ids == video_llava.inputs.prompt([turn], media)["input_ids"].tolist()


@pytest.fixture(scope="module")
def server(video_llava: Engine) -> Iterator[ApiServer]:
    with ApiServer(video_llava) as running:
        yield running


def test_a_video_is_answered_over_http_and_its_file_is_gone(
    server: ApiServer, video_llava: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    url, path = sent_as_gif(tmp_path)
    frames = open_video(path, video_llava.inputs.frame_numbers, video_llava.inputs.image_opening)
    reply = server.post(request({"type": "video_url", "video_url": {"url": url}}, text(QUESTION))).json
    assert reply["choices"][0]["message"]["content"] == video_llava.answer([Prompt(QUESTION, (frames,))], GREEDY)[0]
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (in_base64(b"", "video/mp4"), "is empty"),
        (in_base64(b"Hello", "video/mp4"), "Video 1 cannot be read"),
        (in_base64(b"#EXTM3U\nfile:///etc/passwd", "video/mp4"), "Video 1 cannot be read"),
        (in_base64(b"Hello", "image/gif"), "Video 1 cannot be read"),
        (in_base64(b"Hello", "text/plain"), "accepted are"),
        ("data:video/jpeg;base64,aGk=,aGk=", "Video 1"),
        ("data:video/jpeg;base64," + "," * 2000, "frames"),
        ("data:video/jpeg;base64,x", "Frame 1 of video 1"),
        ("/etc/passwd", "not read"),
    ],
)
def test_a_video_that_cannot_be_shown_is_refused_in_words(server: ApiServer, url: str, words: str) -> None:
    refused = server.post(showing(url, "video_url"))
    assert refused.status == 400 and words in refused.error["message"] and "/tmp" not in refused.error["message"]
    assert refused.error["param"] == "messages[0].content[0].video_url"


def test_media_are_counted_in_the_order_of_their_messages() -> None:
    body = request(image(pictures(1)[0]), {"type": "video_url", "video_url": {"url": "x"}}, text(QUESTION))
    kinds = [medium.kind for medium in read_completion(body, DEFAULTS, ServingLimits()).conversation.media]
    assert kinds == ["image", "video"]
