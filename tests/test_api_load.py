"""The API under load, by the real client: batches, full queues, clients that leave, a model that dies, an end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from api_server import LONG, ApiServer, Gate, asked, photos, tiny_engine, until
from openai import AsyncOpenAI
from test_api import figures
from tiny_folder import write_model
from warm_python import warm_python

from llava.inference.batches import Prompt
from llava.inference.engine import Engine
from llava.inference.generation import GenerationSettings
from llava.serve.limits import ServingLimits

QUESTION = "What digit is red?"
ROOT = Path(__file__).resolve().parents[1]


def mixed(count: int) -> list[dict[str, Any]]:
    """Requests that all differ: by text, images, budget, sampling, length."""
    shown = photos(2)
    made = []
    for number in range(count):
        fields: dict[str, Any] = {"max_tokens": 3 + number % 5, "seed": number}
        if number % 3 == 1:
            fields |= {"temperature": 0.9, "top_p": 0.8 if number % 2 else 1}
        if number % 4 == 3:
            fields["extra_body"] = {"compression": "none"}
        made.append(asked(f"Question {number}: where is the seven?", shown[: number % 3], **fields))
    return made


def test_32_clients_at_once_all_get_their_own_answers() -> None:
    """Greedy and sampled, streamed and whole, of two budgets; each as it was answered alone."""
    with ApiServer(tiny_engine(), ServingLimits(batch_size=6)) as server:
        with server.client() as client:
            expected = [client.chat.completions.create(**request) for request in mixed(32)]

        async def ask(client: AsyncOpenAI, number: int, request: dict[str, Any]) -> str:
            if number % 2:
                stream = await client.chat.completions.create(**request, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return (await client.chat.completions.create(**request)).choices[0].message.content or ""

        async def all_at_once() -> list[str]:
            async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=LONG) as client:
                return await asyncio.gather(*(ask(client, n, request) for n, request in enumerate(mixed(32))))

        before = figures(server)
        answers = asyncio.run(all_at_once())
        after = figures(server)
        assert answers == [reply.choices[0].message.content for reply in expected]
        batches = after["llava_batch_rows_count"] - before["llava_batch_rows_count"]
        assert after["llava_batch_rows_sum"] - before["llava_batch_rows_sum"] == 32 and batches < 32
        assert server.service.taken == 0


def test_what_waits_together_is_answered_together_by_budget() -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    with ApiServer(engine, ServingLimits(batch_size=4)) as server, server.client() as client, pool(10) as threads:
        first = threads.submit(client.chat.completions.create, **asked(QUESTION))
        until(lambda: gate.batches == [1])
        budgets = ("none", None, "none", None, None, None, None)
        later = []
        for budget in budgets:
            more = {} if budget is None else {"extra_body": {"compression": budget}}
            later.append(threads.submit(client.chat.completions.create, **asked(QUESTION), **more))
            until(lambda: figures(server)["llava_rows_waiting"] == len(later))  # called at once
        gate.open()
        texts = [one.result().choices[0].message.content for one in (first, *later)]
    assert gate.batches == [1, 2, 4, 1], "the oldest decides about the budget"
    assert len(set(texts)) == 1


def test_a_batch_has_no_more_tokens_than_fit() -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    limits = ServingLimits(batch_size=8, batch_tokens=100)
    with ApiServer(engine, limits) as server, server.client() as client, pool(6) as threads:
        first = threads.submit(client.chat.completions.create, **asked(QUESTION))
        until(lambda: gate.batches == [1])
        later = [threads.submit(client.chat.completions.create, **asked(QUESTION)) for _ in range(4)]
        until(lambda: figures(server)["llava_rows_waiting"] == 4)
        gate.open()
        tokens = first.result().usage.total_tokens
        assert all(one.result() for one in later)
    fit = 100 // tokens
    assert 1 < fit < 4 and gate.batches[1] == fit


def test_a_full_queue_is_told_in_time_and_nothing_that_was_taken_is_lost() -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    limits = ServingLimits(batch_size=2, waiting=3)
    with ApiServer(engine, limits) as server, server.client() as client, pool(8) as threads:
        taken = [threads.submit(client.chat.completions.create, **asked(QUESTION)) for _ in range(5)]
        until(lambda: server.service.taken == 5)
        for _ in range(3):
            reply = server.post(asked(QUESTION))
            assert reply.status == 429 and reply.error["type"] == "rate_limit_error"
            assert 1 <= int(reply.headers["retry-after"]) <= 60
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**asked(QUESTION), stream=True)
        gate.open()
        assert len({one.result().choices[0].message.content for one in taken}) == 1
        assert server.service.taken == 0
        reply = server.post(asked(QUESTION, n=6))
        assert reply.status == 429, "every answer takes a place"
        assert server.post(asked(QUESTION, n=5)).status == 200


def test_the_client_that_tries_again_gets_its_answer() -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    limits = ServingLimits(batch_size=1, waiting=0)
    with ApiServer(engine, limits) as server, server.client(max_retries=5) as client, pool(3) as threads:
        asking = [threads.submit(client.chat.completions.create, **asked(QUESTION)) for _ in range(2)]
        until(lambda: 'llava_requests_total{status="429"}' in figures(server))
        gate.open()
        assert len({one.result().choices[0].message.content for one in asking}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits_frees_its_place(stream: bool) -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    with ApiServer(engine, ServingLimits(batch_size=1)) as server, server.client() as client, pool(2) as threads:
        running = threads.submit(client.chat.completions.create, **asked(QUESTION))
        until(lambda: gate.batches == [1])
        leaving = send(server, asked(QUESTION, stream=stream))
        until(lambda: figures(server)["llava_rows_waiting"] == 1)
        leaving.close()
        until(lambda: server.service.taken == 1)
        counted = figures(server)
        assert counted["llava_requests_left_total"] == 1 and counted["llava_rows_waiting"] == 0
        gate.open()
        assert running.result()
        assert client.chat.completions.create(**asked(QUESTION)) and gate.batches == [1, 1], "the model did not see it"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_within_a_batch_holds_up_nobody(stream: bool) -> None:
    """Its row ends at the next token, and so does the batch."""
    engine = tiny_engine(max_position_embeddings=100_000)
    steps = slowed(engine)
    limits = ServingLimits(new_tokens=50_000)
    with ApiServer(engine, limits) as server, server.client() as client:
        leaving = send(server, asked(QUESTION, stream=stream, max_tokens=50_000))
        until(lambda: steps)
        leaving.close()
        until(lambda: server.service.taken == 0)
        assert client.chat.completions.create(**asked(QUESTION)).choices[0].message.content
        assert figures(server)["llava_requests_left_total"] == 1
        assert len(steps) < 50_000


def test_a_row_of_a_client_that_left_does_not_end_its_neighbours() -> None:
    engine = tiny_engine()
    expected = engine.answer([Prompt(QUESTION)], GenerationSettings(0, max_new_tokens=200))[0]
    gate = Gate(engine)
    with ApiServer(engine, ServingLimits(batch_size=2)) as server, server.client() as client, pool(3) as threads:
        first = threads.submit(client.chat.completions.create, **asked(QUESTION))
        until(lambda: gate.batches == [1])
        leaving = send(server, asked(QUESTION, stream=True, max_tokens=200))
        until(lambda: figures(server)["llava_rows_waiting"] == 1)
        stays = threads.submit(client.chat.completions.create, **asked(QUESTION, max_tokens=200))
        until(lambda: figures(server)["llava_rows_waiting"] == 2)
        gate.open()
        while b"content" not in leaving.recv(4096):
            continue
        leaving.close()
        assert stays.result().choices[0].message.content == expected and first.result()
        until(lambda: server.service.taken == 0)


def test_a_request_that_takes_too_long_is_told_and_frees_its_place() -> None:
    engine = tiny_engine(max_position_embeddings=100_000)
    slowed(engine, 0.01)
    limits = ServingLimits(new_tokens=50_000, seconds=1.0)
    with ApiServer(engine, limits) as server:
        reply = server.post(asked(QUESTION, max_tokens=50_000))
        assert reply.status == 504 and reply.error["code"] == "timeout" and "1 seconds" in reply.error["message"]
        until(lambda: server.service.taken == 0 and not server.service.model.answering)
        with server.client() as client, pytest.raises(openai.APIError, match="1 seconds"):
            for _ in client.chat.completions.create(**asked(QUESTION, max_tokens=50_000), stream=True):
                continue


def test_a_model_that_hangs_is_told_by_health_until_it_goes_on() -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    with ApiServer(engine, ServingLimits(seconds=0.5)) as server:
        assert server.post(asked(QUESTION)).status == 504
        until(lambda: server.ask("GET", "/health").status == 503)
        assert "no token" in server.ask("GET", "/health").json["status"]
        assert server.post(asked(QUESTION)).status == 503
        gate.open()
        until(lambda: server.ask("GET", "/health").status == 200)


@pytest.mark.parametrize("death", [SystemExit(3), torch.AcceleratorError("CUDA error: device-side assert triggered")])
def test_a_model_that_dies_fails_what_waits_and_health_says_so(death: BaseException) -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    generate = engine.generate

    def dying(*arguments: Any, **options: Any) -> Any:
        generate(*arguments, **options)
        raise death

    engine.generate = dying  # type: ignore[method-assign]
    with ApiServer(engine, ServingLimits(batch_size=1)) as server, server.client() as client, pool(3) as threads:
        asking = [threads.submit(client.chat.completions.create, **asked(QUESTION, n=2)) for _ in range(3)]
        until(lambda: figures(server)["llava_rows_waiting"] == 5)
        gate.open()
        for one in asking:
            with pytest.raises(openai.InternalServerError, match="failed for good") as told:
                one.result()
            assert told.value.status_code == 503
        assert server.post(asked(QUESTION)).error["code"] == "model_died"
        health = server.ask("GET", "/health")
        assert health.status == 503 and "failed for good" in health.json["status"]
        assert figures(server)["llava_model_up"] == 0 == server.service.taken


def test_a_question_at_fault_costs_its_neighbours_nothing() -> None:
    """The batch fails, and again the row alone; the others are answered."""
    engine = tiny_engine()
    gate = Gate(engine)
    generate = engine.generate

    def failing(inputs: Any, *arguments: Any, **options: Any) -> Any:
        if int((inputs["input_ids"] == letter).sum()) > 2:
            raise RuntimeError("a kernel fails on this question")
        return generate(inputs, *arguments, **options)

    fault = "QQQQ"
    letter = engine.tokenizer(fault).input_ids[-1]
    with ApiServer(engine) as server, server.client() as client, pool(4) as threads:
        first = threads.submit(client.chat.completions.create, **asked(QUESTION))
        until(lambda: gate.batches == [1])
        engine.generate = failing  # type: ignore[method-assign]
        later = [threads.submit(client.chat.completions.create, **asked(text)) for text in (QUESTION, fault, QUESTION)]
        until(lambda: figures(server)["llava_rows_waiting"] == 3)
        gate.open()
        expected = first.result().choices[0].message.content
        assert [later[n].result().choices[0].message.content for n in (0, 2)] == [expected] * 2
        with pytest.raises(openai.InternalServerError, match="RuntimeError") as told:
            later[1].result()
        assert "kernel" not in str(told.value), "what went wrong inside stays in the log"
        assert server.ask("GET", "/health").status == 200


def test_a_batch_too_large_for_the_memory_is_answered_row_by_row() -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    generate = engine.generate

    def failing(inputs: Any, *arguments: Any, **options: Any) -> Any:
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(inputs, *arguments, **options)

    engine.generate = failing  # type: ignore[method-assign]
    with ApiServer(engine) as server, server.client() as client, pool(3) as threads:
        asking = [threads.submit(client.chat.completions.create, **asked(QUESTION)) for _ in range(3)]
        until(lambda: figures(server)["llava_rows_waiting"] + len(server.service.model.answering) == 3)
        gate.open()
        assert len({one.result().choices[0].message.content for one in asking}) == 1


def test_an_end_finishes_what_runs_and_refuses_what_is_new() -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    server = ApiServer(engine, ServingLimits(batch_size=1))
    with server.client() as client, pool(2) as threads:
        with server:
            running = [threads.submit(client.chat.completions.create, **asked(QUESTION)) for _ in range(2)]
            until(lambda: server.service.taken == 2)
            server.server.end()
            until(lambda: server.ask("GET", "/health").status == 503)
            refused = server.post(asked(QUESTION))
            assert refused.status == 503 and refused.error["code"] == "ending" and "retry-after" in refused.headers
            gate.open()
            assert server.wait()
        assert len({one.result().choices[0].message.content for one in running}) == 1


def test_an_end_comes_within_its_bound_and_says_so_to_who_waits() -> None:
    engine = tiny_engine()
    gate = Gate(engine)
    server = ApiServer(engine, ServingLimits(batch_size=1, ending_seconds=0.3))
    with server.client() as client, pool(2) as threads:
        with server:
            running = [threads.submit(client.chat.completions.create, **asked(QUESTION)) for _ in range(2)]
            until(lambda: server.service.taken == 2)
            server.server.end()
            assert server.wait(), "although the model never ends"
        for one in running:
            with pytest.raises(openai.InternalServerError, match="ending"):
                one.result()
        gate.open()


@pytest.mark.slow
def test_a_program_ends_on_sigterm_with_status_0(tmp_path: Path) -> None:
    """Keys come from the environment and are shown nowhere; the address is printed."""
    write_model(tmp_path / "tiny")
    key = "a-secret-of-nobody-0123456789"
    environment = os.environ | {"LLAVA_API_KEYS": f"{key}, another-key", "OMP_NUM_THREADS": "1"}
    words = ["--model-path", str(tmp_path / "tiny"), "--device", "cpu", "--port", "0", "--conv-mode", "v1"]
    with subprocess.Popen(
        [warm_python(), "-m", "llava.serve.api", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        assert program.stdout is not None
        said = ""
        while " is served at " not in said:
            line = program.stdout.readline()
            assert line, said
            said += line
        address = said.rpartition(" is served at ")[2].split()[0]
        with openai.OpenAI(base_url=address, api_key=key, timeout=LONG) as client:
            reply = client.chat.completions.create(**asked(QUESTION, photos(1), model="tiny"))
            assert reply.usage.completion_tokens == 6
        with openai.OpenAI(base_url=address, api_key="wrong-key", timeout=LONG) as client:
            with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
                client.chat.completions.create(**asked(QUESTION))
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        program.send_signal(signal.SIGTERM)
        said += program.communicate(timeout=LONG)[0]
    assert program.returncode == 0 and key not in said and "another-key" not in said and "wrong-key" not in said


def send(server: ApiServer, body: dict[str, Any]) -> socket.socket:
    """Send a request and do not wait for the reply."""
    content = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=LONG)
    head = ("POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json")
    connection.sendall("\r\n".join([*head, f"Content-Length: {len(content)}", "", ""]).encode() + content)
    return connection


def slowed(engine: Engine, seconds: float = 0.0) -> list[int]:
    """Note every step of the model; each takes so long at least."""
    steps: list[int] = []

    def step(*_: Any) -> None:
        steps.append(1)
        time.sleep(seconds)

    engine.model.lm_head.register_forward_hook(step)
    return steps


def pool(count: int) -> ThreadPoolExecutor:
    """Threads of clients."""
    return ThreadPoolExecutor(count)
