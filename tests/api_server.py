"""The API around a tiny model, in a thread of the test, on a port of this machine; and what clients send it."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import tiny
from openai import OpenAI
from PIL import Image
from test_chat import PROCESSOR, TOKENIZER, make_model, pictures

from llava.inference.engine import Engine
from llava.serve.api.access_keys import AccessKeys
from llava.serve.api.chat_service import ChatService
from llava.serve.api.completion_fields import AskingDefaults
from llava.serve.api.http_routes import make_app
from llava.serve.graceful_server import GracefulServer, address_of, bound, make_config
from llava.serve.limits import ServingLimits

MODEL = "tiny"
LONG = 120.0
"""Seconds that a test waits at most: machines are busy."""


def tiny_engine(compression: Any = tiny.DUET, **settings: Any) -> Engine:
    """A random model with its tokenizer; ends answers by their length alone unless `eos_token_id` is set."""
    return Engine(make_model(compression, **settings), TOKENIZER, PROCESSOR, "v1")


def data_url(picture: Image.Image, form: str = "PNG") -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    picture.save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def asked(text: str, shown: Sequence[Image.Image] = (), **fields: Any) -> dict[str, Any]:
    """A request with pictures in front of a question; greedy and short unless `fields` say otherwise."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(one)}} for one in shown]
    content: Any = [*parts, {"type": "text", "text": text}] if shown else text
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 6} | fields


class ApiServer:
    """Serves a model; use it as a context manager.

    Attributes:
        service: what answers.
        url: address without a path.
    """

    def __init__(
        self, engine: Engine, limits: ServingLimits | None = None, keys: Sequence[str] = (), fetches: bool = False
    ) -> None:
        self.service = ChatService(engine, AskingDefaults(MODEL, 0.0), AccessKeys(keys), limits, fetches)
        self._socket = bound("127.0.0.1", 0)
        self.url = address_of(self._socket)
        config = make_config(make_app(self.service), "critical")

        def begin_ending() -> None:
            self.service.is_ending = True

        service = self.service
        seconds = service.limits.ending_seconds
        self.server = GracefulServer(config, begin_ending, lambda: service.taken, service.give_up, seconds)
        self._thread = threading.Thread(target=self.server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> ApiServer:
        self._thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(self, *error: object) -> None:
        self.server.end()
        self.server.end()  # whatever a test left under way
        assert self.wait(), "the server did not end"

    def wait(self) -> bool:
        """Wait for the end of the server; whether it came."""
        self._thread.join(LONG)
        return not self._thread.is_alive()

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        """The real client, which tries once."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, "timeout": LONG} | options)

    def post(self, body: Any, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions") -> Replied:
        """Send any bytes, or a value as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, content, {"Content-Type": "application/json"} | (headers or {}))

    def ask(
        self, method: str, path: str, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Replied:
        """One request over a connection of its own."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=LONG)
        try:
            connection.request(method, path, content, headers or {})
            reply = connection.getresponse()
            return Replied(reply.status, dict(reply.headers), reply.read())
        finally:
            connection.close()


class Replied:
    """A reply: status, headers, bytes."""

    def __init__(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.content = content

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """The error, in OpenAI's form: a sentence, a type, and what is at fault."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and error["message"].endswith(".") and len(error["message"]) < 2000
        assert "Traceback" not in error["message"] and error["type"]
        return dict(error)


class Gate:
    """Holds a model before it answers: batches wait until it is opened."""

    def __init__(self, engine: Engine) -> None:
        self.batches: list[int] = []
        self._open = threading.Event()
        self._generate = engine.generate
        engine.generate = self._held  # type: ignore[method-assign]

    def _held(self, inputs: Any, *arguments: Any, **options: Any) -> Any:
        self.batches.append(len(inputs["input_ids"]))
        assert self._open.wait(LONG)
        return self._generate(inputs, *arguments, **options)

    def open(self) -> None:
        """Let everything through."""
        self._open.set()


def until(true: Any) -> None:
    """Wait until something is so."""
    ends = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.005)


def photos(count: int) -> list[Image.Image]:
    """Pictures that all differ."""
    return pictures(count)
