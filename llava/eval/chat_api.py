"""A language model behind an address that speaks OpenAI's chat protocol: `POST {address}/chat/completions`.

Most servers of language models speak it, so that the judge of a benchmark may be a hosted model or one of your own.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub.utils import httpx

URL_VARIABLE = "LLAVA_JUDGE_URL"
KEY_VARIABLE = "LLAVA_JUDGE_KEY"
OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"
MODEL_VARIABLE = "LLAVA_JUDGE_MODEL"
TIMEOUT_VARIABLE = "LLAVA_JUDGE_TIMEOUT"

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-4.1"
DEFAULT_TIMEOUT = 120.0
LONGEST_PAUSE = 60.0
ROOM_FOR_REASONING = 4096
"""Tokens on top of an answer's length where a model counts what it thinks: it takes `max_completion_tokens` alone."""

Message = Mapping[str, str]
"""One message of a conversation: `role` and `content`."""


class ChatError(ValueError):
    """The model cannot be asked; the message says why and what to change."""


@dataclass(frozen=True)
class Reply:
    """What the model said.

    Attributes:
        text: empty where the server refused to let the model answer.
        model: name that the server gives it, often with a date.
        temperature: 0; None where the model takes none, so that it answered at its own.
    """

    text: str
    model: str
    temperature: float | None = 0.0


@dataclass(frozen=True)
class ChatApi:
    """Where a model is and how it is asked.

    Attributes:
        url: of the protocol's root, e.g. `https://api.openai.com/v1`.
        model: name, as the server knows it.
        key: sent as bearer token; None where the server wants none.
        timeout: seconds to wait for an answer.
        attempts: how often a question is sent before the server counts as out of order.
        first_pause: seconds before the second attempt; each later pause is twice as long.

    Raises:
        ChatError: if the address is none, or the key cannot be sent.
    """

    url: str = DEFAULT_URL
    model: str = DEFAULT_MODEL
    key: str | None = field(default=None, repr=False)
    timeout: float = DEFAULT_TIMEOUT
    attempts: int = 6
    first_pause: float = 1.0
    _refused: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/\s]+\S*$", self.url):
            raise ChatError(f"{self.url!r} is not an http(s) address; set {URL_VARIABLE} to one such as {DEFAULT_URL}.")
        if self.key and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise ChatError(f"The key of the judge holds characters that no key has; check {KEY_VARIABLE}.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ChatApi:
        """The model that LLAVA_JUDGE_URL, LLAVA_JUDGE_KEY (or OPENAI_API_KEY) and LLAVA_JUDGE_MODEL name.

        OPENAI_API_KEY is sent to OpenAI's own address only.

        Raises:
            ChatError: if a value cannot be used, or OpenAI's address is asked without a key.
        """
        environment = os.environ if environment is None else environment
        url = environment.get(URL_VARIABLE) or DEFAULT_URL
        key = (environment.get(KEY_VARIABLE) or "").strip()
        if not key and urlsplit(url).hostname == urlsplit(DEFAULT_URL).hostname:
            key = (environment.get(OPENAI_KEY_VARIABLE) or "").strip()
            if not key:
                raise ChatError(
                    f"{url} wants a key; set {KEY_VARIABLE} or {OPENAI_KEY_VARIABLE}, or {URL_VARIABLE} to a server "
                    "that needs none."
                )
        return cls(url, environment.get(MODEL_VARIABLE) or DEFAULT_MODEL, key or None, _timeout(environment))

    @property
    def public_url(self) -> str:
        """The address without what it may hold of names, passwords and keys."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def client(self) -> httpx.Client:
        """Connections to the server, to be shared by threads and closed by the caller."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(timeout=self.timeout, headers=headers)

    def ask(
        self,
        client: httpx.Client,
        messages: Sequence[Message],
        max_tokens: int,
        pause: Callable[[float], Any] = time.sleep,
    ) -> Reply:
        """Ask at temperature 0; goes on asking while the server is overloaded, out of order or out of reach.

        A model that refuses `max_tokens` or a temperature, as reasoning models do, is asked without: at once, and from
        then on.

        Args:
            client: of `client()`.
            messages: the conversation.
            max_tokens: longest answer.
            pause: waits for so many seconds.

        Raises:
            ChatError: if the server refuses, answers something else, or does not answer after all attempts.
        """
        trouble, wait = "nothing", 0.0
        for attempt in range(self.attempts):
            if attempt:
                pause(wait)
            wait = min(self.first_pause * 2**attempt, LONGEST_PAUSE)
            try:
                response, temperature = self._post(client, messages, max_tokens)
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {error}"
                continue
            if not _may_pass(response.status_code):
                return self._reply(response, temperature)
            trouble = _said(response)
            wait = max(wait, _retry_after(response))
        raise ChatError(
            f"{self.public_url} gave no answer in {self.attempts} attempts; the last one ended with {trouble}. "
            f"Check {URL_VARIABLE}, or try again later: what was graded is kept."
        )

    def _post(
        self, client: httpx.Client, messages: Sequence[Message], max_tokens: int
    ) -> tuple[httpx.Response, float | None]:
        """The response, after the parameters that the server refuses have been left out, and the temperature."""
        refused = set(self._refused)
        while True:
            content: dict[str, Any] = {"model": self.model, "messages": [dict(message) for message in messages]}
            if "temperature" not in refused:
                content["temperature"] = 0
            if "max_tokens" not in refused:
                content["max_tokens"] = max_tokens
            else:
                content["max_completion_tokens"] = max_tokens + ROOM_FOR_REASONING
            response = client.post(self.url.rstrip("/") + "/chat/completions", json=content)
            named = {name for name in ("temperature", "max_tokens") if name in content and _refuses(response, name)}
            if not named:
                if response.status_code == 200:
                    self._refused.update(refused)
                return response, content.get("temperature")
            refused |= named

    def _reply(self, response: httpx.Response, temperature: float | None) -> Reply:
        """What a server said that is not overloaded."""
        status = response.status_code
        if status in (401, 403):
            raise ChatError(f"{self.public_url} refuses the key ({_said(response)}); check {KEY_VARIABLE}.")
        if status == 404:
            raise ChatError(
                f"{self.public_url} has no /chat/completions or no model {self.model!r} ({_said(response)}); check "
                f"{URL_VARIABLE} and {MODEL_VARIABLE}."
            )
        if status == 400 and "content_filter" in response.text:
            return Reply("", self.model, temperature)
        if status != 200:
            raise ChatError(f"{self.public_url} refuses the question ({_said(response)}).")
        try:
            answer = response.json()
            text = answer["choices"][0]["message"]["content"]
            return Reply("" if text is None else str(text), str(answer.get("model") or self.model), temperature)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ChatError(
                f"{self.public_url} answered something else than a chat completion ({_said(response)}); check "
                f"{URL_VARIABLE}."
            ) from error


def _timeout(environment: Mapping[str, str]) -> float:
    value = environment.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ChatError(f"{TIMEOUT_VARIABLE} is {value!r}; set it to a number of seconds above 0.")
    return seconds


def _may_pass(status: int) -> bool:
    """Whether asking again may help."""
    return status in (408, 409, 425, 429) or status >= 500


def _refuses(response: httpx.Response, name: str) -> bool:
    """Whether a server refuses a question because of a parameter."""
    text = response.text
    return response.status_code == 400 and "content_filter" not in text and bool(re.search(rf"\b{name}\b", text))


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait."""
    try:
        return max(0.0, min(float(response.headers.get("retry-after", 0)), LONGEST_PAUSE))
    except ValueError:
        return 0.0


def _said(response: httpx.Response) -> str:
    """Status and the beginning of what came with it."""
    return " ".join(f"status {response.status_code}: {response.text[:200]}".split()).rstrip(":")
