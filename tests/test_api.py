"""The API as OpenAI's client speaks it: answers, streams, usage, budgets, errors in words."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
import tiny
from api_server import MODEL, ApiServer, asked, data_url, photos, tiny_engine, until
from PIL import Image

from llava.compression.config import CompressionConfig
from llava.inference.batches import Prompt
from llava.inference.chat import Chat
from llava.inference.engine import Engine
from llava.inference.generation import GenerationSettings

QUESTION = "What digit is red?"
GREEDY = GenerationSettings(0, max_new_tokens=6)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[ApiServer]:
    with ApiServer(engine) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[openai.OpenAI]:
    with server.client() as opened:
        yield opened


def alone(engine: Engine, text: str, shown=(), settings: GenerationSettings = GREEDY) -> str:
    return engine.answer([Prompt(text, tuple(shown))], settings)[0]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_client_gets_the_answer_that_the_chat_program_gives(engine, client, count: int) -> None:
    shown = photos(count)
    reply = client.chat.completions.create(**asked(QUESTION, shown))
    (choice,) = reply.choices
    assert choice.message.content == alone(engine, QUESTION, shown)
    assert (choice.finish_reason, choice.message.role, reply.model) == ("length", "assistant", MODEL)


def test_usage_says_prompt_answer_and_visual_tokens(engine, client) -> None:
    (photo,) = photos(1)
    usage = client.chat.completions.create(**asked(QUESTION, [photo])).usage
    chat = Chat.over(engine, GREEDY)
    chat.answer(QUESTION, [photo])
    assert chat.usage is not None
    entered = max(chat.usage.visual_tokens)
    expected = {"before": 16, "after_v2v": entered, "average_over_layers": round(chat.usage.average, 4)}
    assert usage.visual_tokens == expected
    said = 6 - 1  # the last token is not computed
    assert usage.prompt_tokens == chat.usage.text_tokens - said + entered
    assert (usage.completion_tokens, usage.total_tokens) == (6, usage.prompt_tokens + 6)


def test_a_conversation_goes_on_as_in_the_chat_program(engine, client) -> None:
    first, second = photos(2)
    chat = Chat.over(engine, GREEDY)
    answers = [chat.answer(QUESTION, [first]), chat.answer("And here?", [second])]
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(first), "detail": "auto"}},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": parts}]
    reply = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=6)
    assert reply.choices[0].message.content == answers[0]
    messages.append(reply.choices[0].message.model_dump())  # as clients send it back, with fields that are null
    messages.append(asked("And here?", [second])["messages"][0])
    reply = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_completion_tokens=6)
    assert reply.choices[0].message.content == answers[1]


def test_a_system_prompt_takes_the_place_of_the_templates(engine, client) -> None:
    system = "You count things. <image> is a word here."
    messages = [{"role": "system", "content": system}, *asked(QUESTION)["messages"]]
    reply = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=6)
    sample = engine.inputs.prompt([QUESTION], [], system=system)
    batch = engine.batch([sample])
    del batch["labels"]
    assert reply.choices[0].message.content == engine.generate(batch, GREEDY).texts[0]
    assert system in engine.tokenizer.decode(sample["input_ids"])
    plain = client.chat.completions.create(**asked(QUESTION))
    assert plain.usage.prompt_tokens != reply.usage.prompt_tokens


@pytest.mark.parametrize("order", ["image first", "text first", "in between"])
def test_images_stand_where_the_models_training_has_them_or_between_texts(engine, client, order: str) -> None:
    """LLaVA's training puts a turn's image in front; between two texts it stays there."""
    (photo,) = photos(1)
    image = {"type": "image_url", "image_url": {"url": data_url(photo)}}
    text, more = ({"type": "text", "text": text} for text in (QUESTION, "And why?"))
    content = {"image first": [image, text], "text first": [text, image], "in between": [text, image, more]}[order]
    written = f"{QUESTION}\n<image>\nAnd why?" if order == "in between" else QUESTION
    messages = [{"role": "user", "content": content}]
    reply = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=6)
    assert reply.choices[0].message.content == alone(engine, written, [photo])


@pytest.mark.parametrize("count", [0, 1])
def test_a_mark_in_a_text_is_a_word(engine, client, count: int) -> None:
    reply = client.chat.completions.create(**asked("What does <image> mean in HTML?", photos(count)))
    assert reply.choices[0].message.content == alone(engine, "What does \\<image> mean in HTML?", photos(count))


def test_a_stream_says_the_same_piece_by_piece(client) -> None:
    request = asked(QUESTION, photos(1), max_tokens=20)
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert pieces[0].choices[0].delta.role == "assistant" and len(pieces) > 5
    assert last.choices == [] and last.usage == whole.usage
    assert all(chunk.usage is None for chunk in pieces) and len({chunk.id for chunk in chunks}) == 1
    without = list(client.chat.completions.create(**request, stream=True))
    assert len(without) == len(pieces)


def test_a_stream_ends_with_its_mark(server: ApiServer) -> None:
    reply = server.post(asked(QUESTION, stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.content.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk" for event in events[:-2])


def test_several_answers_have_seeds_of_their_own(client) -> None:
    request = asked(QUESTION, photos(1), temperature=1.2, max_tokens=8)
    several = client.chat.completions.create(**request, n=3, seed=11)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2] and len(set(texts)) == 3
    singles = [client.chat.completions.create(**request, seed=11 + n).choices[0].message.content for n in range(3)]
    assert texts == singles
    assert several.usage.completion_tokens == 24
    one = client.chat.completions.create(**request, seed=11).usage
    assert several.usage.prompt_tokens == one.prompt_tokens
    streamed: dict[int, str] = {}
    for chunk in client.chat.completions.create(**request, n=3, seed=11, stream=True):
        index, piece = chunk.choices[0].index, chunk.choices[0].delta.content or ""
        streamed[index] = streamed.get(index, "") + piece
    assert list(streamed.values()) == texts


def test_without_a_seed_answers_differ(client) -> None:
    request = asked(QUESTION, temperature=1.5, max_tokens=12)
    assert len({client.chat.completions.create(**request).choices[0].message.content for _ in range(4)}) > 1


def test_words_that_stop_an_answer_are_left_out(client) -> None:
    request = asked(QUESTION, photos(1), max_tokens=30)
    whole = client.chat.completions.create(**request).choices[0].message.content
    stop = whole[8:11]
    for given in (stop, ["never", stop]):
        reply = client.chat.completions.create(**request, stop=given)
        assert reply.choices[0].message.content == whole[: whole.index(stop)].strip()
        assert reply.choices[0].finish_reason == "stop" and reply.usage.completion_tokens < 30


@pytest.mark.parametrize(
    "budget",
    [
        {"v2v": None, "t2v": None},
        "none",
        {"v2v": {"dominant": 5, "contextual": 1}},
    ],
)
def test_a_request_may_name_another_budget(engine, client, budget) -> None:
    (photo,) = photos(1)
    reply = client.chat.completions.create(**asked(QUESTION, [photo]), extra_body={"compression": budget})
    chat = Chat.over(engine, GREEDY, budget)
    assert reply.choices[0].message.content == chat.answer(QUESTION, [photo])
    v2v = CompressionConfig.resolve(budget).v2v
    assert reply.usage.visual_tokens["after_v2v"] == (16 if v2v is None else v2v.token_count(17))
    assert engine.model.compression == CompressionConfig.resolve(tiny.DUET), "the model's own stays as it is"


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("qwen-640", "made for qwen2.5-vl"),
        ("duet-192", "32 decoder layers"),
        ("duet-1", "no compression preset"),
        ("/etc/passwd", "no compression preset"),
        ("configs/compression/none.yaml", "no compression preset"),
        ({"v2v": {"dominant": 10**9, "contextual": 1}}, "choose at most"),
        ({"v2v": {"dominant": 5, "contextual": 1, "score": "of_a_package"}}, "accepted here"),
        ({"t2v": {"layers": [99], "keep": [0.5]}}, "decoder has"),
        ({"t2v": {"layers": "many", "keep": [0.5]}}, "must be a list"),
        ({"t2v": {"layers": [1], "keep": [0.5], "score": ["x"]}}, "accepted here"),
        ({"w2w": None}, "Unknown compression key"),
        (7, "name of a preset"),
        ([], "name of a preset"),
    ],
)
def test_a_budget_that_does_not_fit_is_refused_in_words(server: ApiServer, budget, words: str) -> None:
    reply = server.post(asked(QUESTION, compression=budget))
    assert reply.status == 400 and reply.error["param"] == "compression" and words in reply.error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"audio": {}}, "audio", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        ({"store": True}, "store", "not supported"),
        ({"top_k": 5}, None, "no field 'top_k'"),
        ({"Temperature": 1}, None, "no field 'Temperature'"),
        ({"temperature": 3}, "temperature", "from 0 to 2"),
        ({"temperature": "1"}, "temperature", "from 0 to 2"),
        ({"temperature": True}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"top_p": 1.5}, "top_p", "from 0 to 1"),
        ({"max_tokens": 0}, "max_tokens", "whole number"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"max_tokens": 10**9}, "max_tokens", "whole number from 1 to 4096"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "differ"),
        ({"max_tokens": 4000}, "messages", "can number"),
        ({"n": 0}, "n", "from 1 to 8"),
        ({"n": 9}, "n", "from 1 to 8"),
        ({"seed": 2**63}, "seed", "whole number"),
        ({"seed": 1.0}, "seed", "whole number"),
        ({"stop": ""}, "stop", "1 to 256"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": 5}, "stop", "must be text"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options", "include_usage"),
        ({"model": 5}, "model", "name of the model"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "Hello"}, "messages", "must be a list"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages[0].role", "take turns"),
        ({"messages": [{"role": "system", "content": "Hi"}]}, "messages", "must end"),
        ({"messages": [{"role": "user", "content": "Hi"}] * 2}, "messages[1].role", "take turns"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role", "accepted are"),
        ({"messages": [{"role": "user", "content": "Hi", "name": "me"}]}, "messages[0].name", "leave it out"),
        ({"messages": [{"role": "user", "content": "   "}]}, "messages[0].content", "blank"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages[0].content", "NUL"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "must be text"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0]",
            "of the types",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 4}]}]},
            "messages[0].content[0].text",
            "text",
        ),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0].content[0]", "of the types"),
    ],
)
def test_what_is_not_understood_is_refused_in_words(server: ApiServer, fields, param: str | None, words: str) -> None:
    reply = server.post(asked(QUESTION, **fields))
    assert reply.status == 400 and reply.error["param"] == param and words in reply.error["message"], reply.content


def test_fields_that_ask_for_nothing_are_taken(client) -> None:
    neutral = {
        "user": "somebody",
        "metadata": {"a": "b"},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logprobs": False,
        "response_format": {"type": "text"},
        "store": False,
        "logit_bias": {},
        "n": 1,
        "stop": None,
        "seed": None,
    }
    plain = client.chat.completions.create(**asked(QUESTION))
    assert client.chat.completions.create(**asked(QUESTION), **neutral).choices == plain.choices


def test_a_detail_that_would_be_passed_over_is_refused(server: ApiServer) -> None:
    image = {"type": "image_url", "image_url": {"url": data_url(photos(1)[0]), "detail": "high"}}
    reply = server.post(asked(QUESTION, messages=[{"role": "user", "content": [image]}]))
    assert reply.status == 400 and "compression" in reply.error["message"]


def test_models_are_listed_with_the_budgets_that_they_take(client, server: ApiServer) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL and client.models.retrieve(MODEL).id == MODEL
    assert "none" in model.compression_presets and "qwen-640" not in model.compression_presets
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.chat.completions.create(**asked(QUESTION, model="other"))


def test_unknown_paths_and_methods_are_errors_of_the_same_form(server: ApiServer) -> None:
    for method, path, status in (
        ("GET", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/", 404),
    ):
        reply = server.ask(method, path)
        assert reply.status == status and reply.error["type"] == "invalid_request_error"


def test_health_and_metrics(server: ApiServer, client) -> None:
    usage = client.chat.completions.create(**asked(QUESTION, photos(1))).usage
    assert server.ask("GET", "/health").json == {"status": "ok"}
    before = figures(server)
    client.chat.completions.create(**asked(QUESTION, photos(1)))
    server.post(asked(QUESTION, n=99))
    after = figures(server)

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grown('llava_requests_total{status="200"}') == 1 == grown('llava_requests_total{status="400"}')
    assert grown('llava_tokens_total{kind="prompt"}') == usage.prompt_tokens
    assert grown('llava_tokens_total{kind="completion"}') == usage.completion_tokens
    for stage, count in usage.visual_tokens.items():
        assert grown(f'llava_visual_tokens_total{{stage="{stage}"}}') == pytest.approx(count, abs=1e-3)
    for name in ("llava_request_seconds", "llava_queue_seconds", "llava_batch_rows"):
        assert grown(f"{name}_count") == 1
    assert after["llava_rows_waiting"] == 0 and after["llava_model_up"] == 1
    until(lambda: figures(server)["llava_rows_answering"] == 0)


def figures(server: ApiServer) -> dict[str, float]:
    lines = server.ask("GET", "/metrics").content.decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}


def test_an_image_may_be_of_any_usual_format(engine, client) -> None:
    photo = Image.new("RGB", (40, 30), (200, 30, 60))
    expected = alone(engine, QUESTION, [photo])
    for form in ("PNG", "BMP", "TIFF", "GIF"):
        image = {"type": "image_url", "image_url": {"url": data_url(photo, form)}}
        content = [image, {"type": "text", "text": QUESTION}]
        request = asked(QUESTION, messages=[{"role": "user", "content": content}])
        assert client.chat.completions.create(**request).choices[0].message.content == expected, form
