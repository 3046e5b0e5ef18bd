"""A judge's server that lies: every reply ends in a sentence within its time, and nothing shows the key."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any
from urllib.parse import quote

import pytest
from judge_server import HANG, JudgeServer

from llava.common.redaction import REDACTED, WITHHELD, Redactor
from llava.eval.judging.chat_api import ChatApi, ChatError
from llava.eval.judging.judge import Judge, JudgeRequest

KEY = "sk-proj-Zq3/vX9+Lw=="
ASK = ({"role": "user", "content": "Is 1 equal to 1?"},)
PIECES = Iterator[bytes | float]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextmanager
def serving(answer: Callable[[], PIECES]) -> Iterator[str]:
    """The address of a server that sends pieces of bytes, and waits where a piece is a number of seconds."""
    closing = Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)

    def serve() -> None:
        while not closing.is_set():
            with suppress(OSError):
                connection = listener.accept()[0]
                Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(100)
            heard = b""
            while not heard.endswith(b"}"):  # closing before all is read would cut off the reply
                heard += connection.recv(65536)
            for piece in answer():
                if closing.is_set():
                    return
                if isinstance(piece, float):
                    closing.wait(piece)
                else:
                    connection.sendall(piece)

    Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        closing.set()
        listener.close()


def whole(body: bytes, status: str = "200 OK", *headers: str) -> Callable[[], PIECES]:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return lambda: iter(["\r\n".join(head).encode() + body])


def says(value: Any) -> Callable[[], PIECES]:
    return whole(json.dumps(value).encode())


def message(content: Any) -> dict[str, Any]:
    return {"model": "judge-1", "choices": [{"message": {"role": "assistant", "content": content}}]}


def without_end(head: bytes, piece: bytes, pause: float) -> Callable[[], PIECES]:
    def pieces() -> PIECES:
        yield head
        while True:
            yield pause
            yield piece

    return pieces


START = b"HTTP/1.1 200 OK\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"
ZERO = gzip.compress(b"0" * (40 << 20))
ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n\u202egnp.exe\u200b\ud800\x00"

LIES: dict[str, tuple[Callable[[], PIECES], str]] = {
    "drips its headers": (without_end(START, b"X", 0.05), "no whole reply within 0.5 seconds"),
    "drips its body": (without_end(START + b"Content-Length: 999\r\n\r\n", b" ", 0.05), "within 0.5 seconds"),
    "drips chunks": (without_end(CHUNKED, b"1\r\n \r\n", 0.05), "within 0.5 seconds"),
    "drips before the status": (without_end(b"", b"H", 0.1), "within 0.5 seconds"),
    "never answers": (without_end(b"", b"", 0.1), "within 0.5 seconds"),
    "sends informational replies for ever": (
        without_end(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
        "within 0.5 seconds|as HTTP says",
    ),
    "sends without end": (without_end(START + b"\r\n", b" " * 65536, 0.0), "sends more than 1 MiB"),
    "promises a gigabyte": (without_end(START + b"Content-Length: 1073741824\r\n\r\n", b"", 0.1), "more than 1 MiB"),
    "packs 40 MiB into little": (whole(ZERO, "200 OK", "Content-Encoding: gzip"), "sends more than 1 MiB"),
    "calls text gzip": (whole(b"no gzip", "200 OK", "Content-Encoding: gzip"), "cannot be decompressed"),
    "breaks off its gzip": (whole(gzip.compress(b"{}" * 99)[:-9], "200 OK", "Content-Encoding: gzip"), "broke off"),
    "packs with what nobody knows": (whole(b"{}", "200 OK", "Content-Encoding: zz\x1b[2J"), "accepted are gzip"),
    "breaks off": (lambda: iter([START + b"Content-Length: 99\r\n\r\n{"]), "broke off after 1 of 99 bytes"),
    "hangs up": (lambda: iter([]), "did not answer as HTTP says|cannot be reached"),
    "speaks no HTTP": (lambda: iter([b"SSH-2.0-OpenSSH_9.6\r\n"]), "did not answer as HTTP says"),
    "has a wrong length": (lambda: iter([START + b"Content-Length: -5\r\n\r\n{}"]), "something else|as HTTP says"),
    "has wrong chunks": (lambda: iter([CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"]), "as HTTP says|broke off"),
    "has a header of 200 KB": (lambda: iter([START + b"A: " + b"x" * 200_000 + b"\r\n\r\n{}"]), "as HTTP says"),
    "has 1,000 headers": (lambda: iter([START + b"A: b\r\n" * 1000 + b"\r\n{}"]), "as HTTP says"),
    "shows a web page": (whole(b"<html>Welcome</html>"), "something else than a chat completion .*Welcome"),
    "says nothing": (whole(b""), "something else .*empty"),
    "is not UTF-8": (whole(b'{"choices": "\xff"}'), "something else .*not UTF-8"),
    "nests deeply": (whole(b'{"choices":' + b"[" * 100_000), "something else .*100 deep"),
    "nests deeply and closes": (whole(b"[" * 400_000 + b"]" * 400_000), "something else .*100 deep"),
    "has huge numbers": (whole(b'{"choices": ' + b"9" * 9000 + b"}"), "something else .*digits"),
    "sends a list": (says([message("yes")]), "the reply is .* not a JSON object"),
    "sends null": (says(None), "the reply is None"),
    "has no choices": (says({"error": {"message": "no"}}), "the reply has no choices"),
    "has empty choices": (says({"choices": []}), "choices is empty"),
    "has choices that are an object": (says({"choices": {"0": 1}}), "choices of the reply is {"),
    "has a choice of null": (says({"choices": [None]}), "first choice is None"),
    "has a message of text": (says({"choices": [{"message": "yes"}]}), "message of the first choice is 'yes'"),
    "has no content": (says({"choices": [{"message": {"role": "assistant"}}]}), "message has no content"),
    "answers with a number": (says(message(10)), "content of the message is 10"),
    "answers with a list": (says(message(["yes"])), "content of the message is"),
    "redirects elsewhere": (whole(b"", "307 T", "Location: http://127.0.0.1:9/v1"), "redirects .*key is not sent"),
    "redirects to itself": (whole(b"", "301 M", "Location: /v1/chat/completions"), "redirects .*key is not sent"),
    "echoes the key": (whole(f"Bearer {KEY} is wrong".encode(), "401 No"), "refuses the key"),
    "echoes the key in escapes": (
        whole("".join(f"\\u{ord(c):04x}" for c in f"Bearer {KEY}").encode(), "500 No"),
        "status 500",
    ),
    "echoes half of the key": (whole(f"Not {KEY[:12]}...".encode(), "400 No"), "refuses the question"),
    "echoes the key in base64": (whole(base64.b64encode(f"Bearer {KEY}".encode()), "418 No"), "refuses the question"),
    "echoes the key in an address": (whole(f"?k={quote(KEY, '')}".encode(), "404 No"), "no model"),
    "echoes the key at the cut": (whole(b"x" * 185 + KEY.encode(), "422 No"), "refuses the question"),
    "echoes the key in JSON": (says({"choices": [KEY]}), "first choice is"),
    "commands the terminal": (whole(ESCAPES.encode("utf-8", "surrogatepass"), "503 No"), "status 503: .*x1b"),
    "commands the terminal in JSON": (whole(json.dumps(ESCAPES).encode(), "400 No"), r"status 400: .*\\u001b"),
    "commands the terminal in its type": (says({"choices": ESCAPES}), "choices of the reply is '.x1b"),
    "asks to wait for ever": (whole(b"busy", "429 Busy", "Retry-After: 1e999"), "status 429: busy"),
    "asks to wait for nothing": (whole(b"busy", "503 Busy", "Retry-After: nan"), "status 503: busy"),
}


def must_be_hidden(text: str) -> None:
    """No part of the key in any form, and nothing that a terminal obeys."""
    assert text.isprintable()
    lower = text.lower()
    for form in (KEY, quote(KEY, ""), base64.b64encode(KEY.encode()).decode(), KEY.encode().hex()):
        assert all(form[start : start + 8].lower() not in lower for start in range(len(form) - 7))
    assert base64.b64encode(f"Bearer {KEY}".encode()).decode()[9:20] not in text


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_costs_its_time_and_one_sentence(lie: str) -> None:
    answer, said = LIES[lie]
    seconds = 0.5 if "within" in said else 100.0
    waits: list[float] = []
    began = time.monotonic()
    with serving(answer) as url:
        api = ChatApi(url, "judge", KEY, timeout=seconds, attempts=2, first_pause=0.01)
        with pytest.raises(ChatError, match=said) as caught:
            api.ask(ASK, 8, waits.append)
    assert time.monotonic() - began < 60
    assert all(0 <= wait <= 60 for wait in waits)
    must_be_hidden(str(caught.value))
    assert len(str(caught.value)) < 1000
    context: BaseException | None = caught.value
    while context is not None:  # what a traceback would print
        assert KEY not in str(context)
        context = context.__cause__


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("7", 7.0),
        ("-3", 0.01),
        ("0", 0.01),
        ("1e999", 60.0),
        ("9" * 400, 60.0),
        ("nan", 0.01),
        ("soon", 0.01),
        ("", 0.01),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.01),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 60.0),
        ("1 2", 0.01),
    ],
)
def test_a_wish_to_be_asked_later_is_heard_within_reason(retry_after: str, seconds: float) -> None:
    waits: list[float] = []
    with serving(whole(b"", "429 Busy", f"Retry-After: {retry_after}")) as url, pytest.raises(ChatError):
        ChatApi(url, "judge", attempts=2, first_pause=0.01).ask(ASK, 8, waits.append)
    assert waits == [seconds]


def test_a_key_in_a_reply_is_neither_saved_nor_recorded(tmp_path: Path) -> None:
    echoed = f"yes; {KEY.upper()} and {base64.b64encode(KEY.encode()).decode()} and {quote(KEY, '')}"
    answer = message(echoed) | {"model": f"judge {KEY}\x1b[2J\n"}
    with serving(says(answer)) as url:
        judge = Judge(ChatApi(url, "judge", KEY))
        task = JudgeRequest(ASK, {"question_id": 1})
        (verdict,) = judge.grade([task], lambda text: {"pred": text[:3]}, tmp_path / "r.jsonl", "Again.", 8)
    assert verdict.grade == {"pred": "yes"}
    assert verdict.text.count(REDACTED) == 3 and verdict.model == rf"judge {REDACTED}\x1b[2J\n"
    must_be_hidden(json.dumps(json.loads((tmp_path / "r.jsonl").read_text())))


def test_redaction_leaves_other_words_alone() -> None:
    redact = Redactor([KEY, "EMPTY", ""])
    for text in ("", "an EMPTY plate", "sk-proj", KEY[:7], "ä" * 50, "\ud800"):
        assert redact(text) == text
    assert redact(f"a{KEY}b{KEY}{KEY}c") == f"a{REDACTED}b{REDACTED}c"
    assert redact("İ" + KEY.lower() + "x") == f"İ{REDACTED}x", "letters that grow in lower case move nothing"
    assert redact("bearer empty.") == f"Bearer {REDACTED}."
    assert Redactor([])("Bearer nothing") == "Bearer nothing"


@pytest.mark.parametrize(
    "url",
    [
        "http://[",
        "http://[::1",
        "http://host:99999/v1",
        "http://host:x/v1",
        "http://",
        "http:///v1",
        "ftp://host/v1",
        "file:///etc/passwd",
        "http://a b/v1",
        "http://\ud800/v1",
        "http://h\nost/v1",
        "http://host\x00/v1",
        "//host",
        "http://a..b/v1",
        "http://" + "a" * 300 + "/v1",
        "htp://user:hunter2hunter2@host/v1",
        "http://[::1%\x1b]/v1",
        "http://host:0/v1",
        "javascript:alert(1)",
        "\ufeffhttp://host/v1",
        "http://user:hunter2hunter2@[/v1",
    ],
)
def test_an_address_that_is_none_is_said_before_anything_is_asked(url: str) -> None:
    for environment in ({"LLAVA_JUDGE_URL": url}, {"LLAVA_JUDGE_URL": url, "LLAVA_JUDGE_KEY": KEY}):
        with pytest.raises(ChatError, match=r"not an http\(s\) address.*LLAVA_JUDGE_URL") as caught:
            ChatApi.from_environment(environment)
        assert str(caught.value).isprintable() and "hunter2" not in str(caught.value)


def test_passwords_of_an_address_are_hidden_and_its_query_stays_behind_the_path() -> None:
    with JudgeServer(lambda request: "yes") as server:
        address = (
            server.url.replace("http://", "http://me:topsecretpassword@") + "?api-version=2024-06-01&key=hiddenkey"
        )
        api = ChatApi(address, "judge", attempts=1)
        with pytest.raises(ChatError, match="no /chat/completions") as caught:  # the stand-in knows no queries
            api.ask(ASK, 8)
    assert "hiddenkey" not in str(caught.value) and "topsecret" not in str(caught.value)
    assert api.redact("?key=hiddenkey&api-version=2024-06-01") == f"?key={REDACTED}&api-version=2024-06-01"


PROGRAM = """
import sys
from pathlib import Path
from llava.eval.runner.exit_status import exit_status
from llava.eval.judging.judge import JudgeRequest, Judge
tasks = [JudgeRequest(({"role": "user", "content": f"q{n}"},), {"question_id": n}) for n in range(40)]
def grade():
    Judge.from_environment().grade(tasks, lambda text: {"pred": text}, Path(sys.argv[1]), "Again.", 8)
    return 0
sys.exit(exit_status(grade))
"""


@pytest.mark.parametrize("signals", [1, 3])
def test_the_first_interrupt_ends_the_judging_and_keeps_every_verdict(tmp_path: Path, signals: int) -> None:
    reviews = tmp_path / "reviews.jsonl"
    with JudgeServer(lambda request: "yes", [None] * 9 + [HANG] * 31) as server:
        variables = os.environ | server.environment(LLAVA_JUDGE_WORKERS="3", LLAVA_JUDGE_TIMEOUT="1000")
        words = [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler)\n{PROGRAM}"]
        program = subprocess.Popen([*words, str(reviews)], env=variables, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while len(server.requests) < 12 and time.monotonic() < deadline and program.poll() is None:
            time.sleep(0.02)
        for _ in range(signals):
            program.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, said = program.communicate(timeout=300)
    assert len(reviews.read_text().splitlines()) == 9
    assert all(json.loads(line)["pred"] == "yes" for line in reviews.read_text().splitlines())
    if signals == 1:
        assert program.returncode == 130 and "Traceback" not in said
        assert said.splitlines()[-1].startswith("Stopped.")


SECRET = "sk-Zq8vWm3LpXt7Rd2"


@pytest.mark.parametrize(
    "spelled",
    [
        "".join(f"%{ord(letter):02x}" for letter in SECRET),
        "".join(f"%25{ord(letter):02x}" for letter in SECRET),
        "".join(f"&#{ord(letter)};" for letter in SECRET),
        "".join(f"&#x{ord(letter):x};" for letter in SECRET),
        "".join(f"\\x{ord(letter):02x}" for letter in SECRET),
        "".join(f"\\\\u{ord(letter):04x}" for letter in SECRET),
        ":".join(f"{ord(letter):02x}" for letter in SECRET),
        " ".join(SECRET),
        "\0".join(SECRET),
        "\u200b".join(SECRET),
        SECRET[::-1],
        "".join(chr(ord(letter) + 0xFEE0) for letter in SECRET),
        base64.b32encode(SECRET.encode()).decode(),
    ],
)
def test_a_key_that_is_spelled_otherwise_is_not_shown(spelled: str) -> None:
    said = Redactor([SECRET])(f"the key {spelled} is wrong")
    assert spelled not in said and ("left out" in said or "removed" in said)


WRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "base64": base64.b64encode,
    "base64 of addresses": lambda held: base64.urlsafe_b64encode(held).rstrip(b"="),
    "base64 of mail": base64.encodebytes,
    "base32": base64.b32encode,
    "hex": lambda held: held.hex().encode(),
    "hex apart": lambda held: held.hex(":").upper().encode(),
    "C": lambda held: b", ".join(b"0x%02x" % value for value in held),
    "percent signs": lambda held: b"".join(b"%%%02X" % value for value in held),
    "backslashes": lambda held: b"".join(b"\\u%04x" % value for value in held),
    "octal": lambda held: b"".join(b"\\%03o" % value for value in held),
    "entities": lambda held: b"".join(b"&#%d;" % value for value in held),
    "codes": lambda held: str(list(held)).encode(),
    "mail": lambda held: b"".join(b"=%02X" % value for value in held),
    "UTF-16": lambda held: held.decode("latin-1").encode("utf-16"),
    "UTF-16 BE": lambda held: held.decode("latin-1").encode("utf-16-be"),
    "UTF-32": lambda held: held.decode("latin-1").encode("utf-32"),
    "words around it": lambda held: b"Bearer " + held + b" ab",
}


def test_a_key_in_encodings_inside_encodings_is_not_shown() -> None:
    redact = Redactor([SECRET])
    for number in range(150):
        random = Random(number)
        names = random.choices(sorted(WRITTEN), k=1 + number % 4)
        held = SECRET.encode()
        for name in names:
            held = WRITTEN[name](held)
        said = held.decode("utf-8", "replace")
        assert said not in redact(f"Error: the key {said}, is wrong."), names
    part = base64.b64encode(base64.b64encode(SECRET[:16].encode())).decode()
    assert redact(f"the key {part}") == WITHHELD


def test_what_hides_nothing_is_shown_and_a_long_text_costs_no_more_than_its_length() -> None:
    redact, random = Redactor([SECRET]), Random(1)
    inside = base64.b64encode(base64.b64encode(random.randbytes(60_000)))
    for text in (
        "The quick brown fox, 12 dogs; 100% of them\n" * 4000,
        random.randbytes(70_000).hex(),
        inside.decode(),
        random.randbytes(90_000).decode("latin-1"),
        "\\" * 100_000,
        "%25" * 50_000,
        "&#65;" * 30_000,
        "12 " * 50_000,
        "\ufdfa" * 20_000,
        "VVVV" * 40_000,
    ):
        began = time.process_time()
        assert redact(text) == text
        assert time.process_time() - began < 2, text[:40]
