"""A client of servers with OpenAI's chat protocol: `POST {address}/chat/completions`.

Most servers of language models speak it, so that the judge of a benchmark may be a hosted model or one of your own.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from llava.common.bounded_http import FetchError, Response, check_address, fetch
from llava.common.json_files import NotJsonError, parse_json
from llava.common.redaction import Redactor
from llava.common.shown import printable, shown

URL_VARIABLE = "LLAVA_JUDGE_URL"
KEY_VARIABLE = "LLAVA_JUDGE_KEY"
OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"
MODEL_VARIABLE = "LLAVA_JUDGE_MODEL"
TIMEOUT_VARIABLE = "LLAVA_JUDGE_TIMEOUT"

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-4.1"
DEFAULT_TIMEOUT = 120.0
LONGEST_PAUSE = 60.0
LARGEST_REPLY = 1 << 20
"""Bytes of a reply; an answer of some thousand tokens has less than a twentieth."""
ROOM_FOR_REASONING = 4096
"""Tokens on top of an answer's length where a model counts what it thinks: it takes `max_completion_tokens` alone."""
_OF_SECRETS = re.compile("key|token|secret|password|auth|sig|code", re.IGNORECASE)
_PASSING = (408, 409, 425, 429)  # with 500 and above, statuses after which asking again may help
_LONGEST_ERROR = 64 * 1024
_LONGEST_SAYING = 200
_LONGEST_NAME = 200

Message = Mapping[str, str]
"""One message of a conversation: `role` and `content`."""


class ChatError(ValueError):
    """The model cannot be asked; the message says why and what to change."""


@dataclass(frozen=True)
class Reply:
    """The reply of the model.

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
    """Address, key and name of a model, and limits of its requests.

    Attributes:
        url: address of the protocol's root, e.g. `https://api.openai.com/v1`.
        model: name, as the server knows it.
        key: sent as bearer token; None where the server wants none.
        timeout: seconds that one request may take, from the connection to the end of the reply.
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
        try:
            check_address(self.url)
        except FetchError as error:
            raise ChatError(
                f"{_without_secrets(self.url)} is not an http(s) address: {error} Set {URL_VARIABLE} to one such as "
                f"{DEFAULT_URL}."
            ) from error
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
        if not key and _parts(url).hostname == _parts(DEFAULT_URL).hostname:
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
        parts = _parts(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @cached_property
    def redact(self) -> Redactor:
        """Takes the key, and what the address holds of passwords and keys, out of texts."""
        parts = _parts(self.url)
        values = [value for name, value in parse_qsl(parts.query) if _OF_SECRETS.search(name) or len(value) >= 16]
        return Redactor([self.key or "", parts.password or "", unquote(parts.password or ""), *values])

    def ask(self, messages: Sequence[Message], max_tokens: int, pause: Callable[[float], Any] = time.sleep) -> Reply:
        """Ask at temperature 0; goes on asking while the server is overloaded, out of order or out of reach.

        A model that refuses `max_tokens` or a temperature, as reasoning models do, is asked without: at once, and from
        then on. Redirects are not followed: the key goes to the address that was given for it, and to no other.

        Args:
            messages: the conversation.
            max_tokens: longest answer.
            pause: waits for so many seconds; true if nothing more is to be asked.

        Returns:
            what the model said; where the server sent back the key, it is taken out.

        Raises:
            ChatError: if the server refuses, answers something else, or does not answer after all attempts. The
                message is one line without control characters and without the key.
        """
        trouble, wait = "nothing", 0.0
        for attempt in range(self.attempts):
            if attempt and pause(wait):
                raise ChatError("Nothing more is asked.")
            wait = min(self.first_pause * 2**attempt, LONGEST_PAUSE)
            try:
                response, temperature = self._post(messages, max_tokens)
            except FetchError as error:
                if not error.transient:
                    raise ChatError(f"{self.redact(str(error))} Check {URL_VARIABLE}.") from None
                trouble = str(error).rstrip(".")
                continue
            if response.status not in _PASSING and response.status < 500:
                return self._reply(response, temperature)
            trouble = self._said(response)
            wait = max(wait, _retry_after(response))
        raise ChatError(
            f"{self._name} gave no answer in {self.attempts} attempts; the last one ended with: {self.redact(trouble)}."
            f" Check {URL_VARIABLE}, or try again later: what was graded is kept."
        )

    @property
    def _name(self) -> str:
        return printable(self.redact(self.public_url))

    def _post(self, messages: Sequence[Message], max_tokens: int) -> tuple[Response, float | None]:
        """The response, after the parameters that the server refuses have been left out, and the temperature."""
        parts = _parts(self.url)
        address = urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/chat/completions", fragment=""))
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        refused = set(self._refused)
        while True:
            content: dict[str, Any] = {"model": self.model, "messages": [dict(message) for message in messages]}
            if "temperature" not in refused:
                content["temperature"] = 0
            if "max_tokens" not in refused:
                content["max_tokens"] = max_tokens
            else:
                content["max_completion_tokens"] = max_tokens + ROOM_FOR_REASONING
            data = json.dumps(content).encode()
            response = fetch(address, data=data, headers=headers, max_bytes=LARGEST_REPLY, seconds=self.timeout)
            named = {name for name in ("temperature", "max_tokens") if name in content and _refuses(response, name)}
            if not named:
                if response.status == 200:
                    self._refused.update(refused)
                return response, content.get("temperature")
            refused |= named

    def _reply(self, response: Response, temperature: float | None) -> Reply:
        """What a server said that is not overloaded."""
        status, said = response.status, self._said(response)
        if status in (401, 403):
            raise ChatError(f"{self._name} refuses the key ({said}); check {KEY_VARIABLE}.")
        if status == 404:
            raise ChatError(
                f"{self._name} has no /chat/completions or no model {shown(self.model)} ({said}); check "
                f"{URL_VARIABLE} and {MODEL_VARIABLE}."
            )
        if 300 <= status < 400:
            raise ChatError(
                f"{self._name} redirects to another address ({said}), where the key is not sent; set {URL_VARIABLE} to "
                "the address that answers."
            )
        if status == 400 and "content_filter" in _text(response):
            return Reply("", self.model, temperature)
        if status != 200:
            raise ChatError(f"{self._name} refuses the question ({said}).")
        try:
            text, model = _completion(parse_json(response.body, lenient=True))
        except NotJsonError as error:
            why = self.redact(str(error))
            raise ChatError(
                f"{self._name} answered something else than a chat completion ({said}): {why}; check {URL_VARIABLE}."
            ) from None
        return Reply(self.redact(text), printable(self.redact(model or self.model), _LONGEST_NAME), temperature)

    def _said(self, response: Response) -> str:
        """Status and the beginning of what came with it, on one line and without the key."""
        text = _text(response)
        if "\\u" in text:  # the key may be written in escapes
            try:
                text = json.dumps(parse_json(text, lenient=True), ensure_ascii=False)
            except NotJsonError:
                text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), text)
        text = printable(" ".join(self.redact(text).split()), _LONGEST_SAYING)
        return f"status {response.status}: {text}".rstrip(": ")


def _completion(answer: Any) -> tuple[str, str | None]:
    """Text and name of the model in a chat completion; no text where the server let the model give none.

    Raises:
        NotJsonError: if it is something else.
    """
    choices = _field(answer, "choices", list, "the reply")
    if not choices:
        raise NotJsonError("its list of choices is empty")
    message = _field(choices[0], "message", dict, "the first choice")
    text = _field(message, "content", str | None, "the message")
    model = answer.get("model")
    return text or "", model if isinstance(model, str) else None


def _field(holder: Any, name: str, kind: Any, what: str) -> Any:
    if not isinstance(holder, dict):
        raise NotJsonError(f"{what} is {shown(holder, 40)}, not a JSON object")
    if name not in holder:
        raise NotJsonError(f"{what} has no {name}")
    if not isinstance(holder[name], kind):
        raise NotJsonError(f"{name} of {what} is {shown(holder[name], 40)}")
    return holder[name]


def _parts(url: str) -> SplitResult:
    """An address taken apart.

    Raises:
        ChatError: if it is none.
    """
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ChatError(
            f"{_without_secrets(url)} is not an http(s) address; set {URL_VARIABLE} to one such as {DEFAULT_URL}."
        ) from error


def _without_secrets(url: str) -> str:
    """What may be shown of a text that should have been an address."""
    return shown(re.sub(r"^([^/@]*//)?.*@", r"\1", re.split(r"[?#]", url)[0], flags=re.DOTALL))


def _timeout(environment: Mapping[str, str]) -> float:
    value = environment.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ChatError(f"{TIMEOUT_VARIABLE} is {value!r}; set it to a number of seconds above 0.")
    return seconds


def _text(response: Response) -> str:
    return response.body[:_LONGEST_ERROR].decode("utf-8", "replace")


def _refuses(response: Response, name: str) -> bool:
    """Whether a server refuses a question because of a parameter."""
    text = _text(response)
    return response.status == 400 and "content_filter" not in text and bool(re.search(rf"\b{name}\b", text))


def _retry_after(response: Response) -> float:
    """Seconds that the server asks to wait, at most `LONGEST_PAUSE`; 0 where it says nothing that can be read."""
    said = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(said)
    except ValueError:
        try:
            now = datetime.datetime.now(datetime.UTC)
            seconds = (parsedate_to_datetime(said).astimezone(datetime.UTC) - now).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            return 0.0
    return max(0.0, min(seconds, LONGEST_PAUSE)) if not math.isnan(seconds) else 0.0
