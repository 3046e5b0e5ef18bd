"""What is sent to the API to harm it: a sentence comes back, and the next request is answered as before."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import LONG, MODEL, ApiServer, asked, data_url, photos, tiny_engine, until
from bytes_server import BytesServer, reply
from PIL import Image
from test_api import figures

from llava.common import bounded_http
from llava.inference.engine import Engine
from llava.serve.api import __main__ as program
from llava.serve.api.access_keys import AccessKeys
from llava.serve.api.completion_fields import AskingDefaults, read_completion
from llava.serve.api.failures import ApiError
from llava.serve.limits import MEBIBYTE, ServingLimits

QUESTION = "What digit is red?"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[ApiServer]:
    with ApiServer(engine, ServingLimits(body_bytes=MEBIBYTE, image_pixels=10**6, upload_seconds=LONG)) as running:
        good = running.post(asked(QUESTION, photos(1))).json["choices"]
        yield running
        assert running.post(asked(QUESTION, photos(1))).json["choices"] == good, "nothing of it harmed the server"
        assert running.service.taken == running.service._held == 0


def png(width: int, height: int) -> bytes:
    """The head of a picture of any size, and no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def in_base64(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def showing(url: Any, kind: str = "image_url") -> dict[str, Any]:
    content = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": QUESTION}]
    return asked(QUESTION, messages=[{"role": "user", "content": content}])


WHOLE = data_url(photos(1)[0])
BAD_IMAGES = {
    "bomb": (in_base64(png(60000, 60000)), "pixels"),
    "thin bomb": (in_base64(png(2**31 - 1, 1)), "pixels"),
    "large": (data_url(Image.new("RGB", (1200, 900))), "more than the 1,000,000"),
    "no pixels": (in_base64(png(30, 30)), "damaged or cut off"),
    "cut off": (in_base64(base64.b64decode(WHOLE.split(",")[1])[:-40]), "damaged or cut off"),
    "cut base64": (WHOLE[:-5], "base64"),
    "base64 with blanks": (WHOLE.replace("A", " "), "base64"),
    "empty": ("data:image/png;base64,", "is empty"),
    "no base64": ("data:image/png,abc", "no data URL in base64"),
    "text": (in_base64(b"Hello"), "not in one of the accepted formats"),
    "svg": (in_base64(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "not in one of the accepted"),
    "a file": ("file:///etc/passwd", "files of the server's machine are not read"),
    "a path": ("/etc/passwd", "files of the server's machine are not read"),
    "nothing": ("", "no data URL in base64"),
    "an address": ("http://example.com/a.png", "--allow-image-urls"),
    "an inner address": ("HTTPS://127.0.0.1/a.png", "--allow-image-urls"),
    "another scheme": ("ftp://example.com/a.png", "no data URL in base64"),
    "long head": ("data:image/png" + ";a=b" * 5000 + ";base64,AAAA", "no data URL in base64"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_cannot_be_shown_is_refused_in_words(server: ApiServer, name: str) -> None:
    url, words = BAD_IMAGES[name]
    reply = server.post(showing(url))
    error = reply.error
    assert reply.status == 400 and words in error["message"], error
    assert (error["param"], error["code"]) == ("messages[0].content[0].image_url", "invalid_image")
    assert error["message"].startswith("Image 1 ") and "/tmp" not in error["message"]


@pytest.mark.parametrize("url", [None, 5, ["x"], {"url": "x"}])
def test_an_image_of_the_wrong_type_is_refused(server: ApiServer, url: Any) -> None:
    reply = server.post(showing(url))
    assert reply.status == 400 and "data URL" in reply.error["message"]


def test_too_many_images_are_refused_before_any_is_decoded(server: ApiServer) -> None:
    reply = server.post(asked(QUESTION, [Image.new("RGB", (2, 2))] * 17))
    assert reply.status == 400 and "more than the 16" in reply.error["message"]


BODIES = {
    "nothing": b"",
    "half": b'{"model": "tiny", "messages": [',
    "a list": b"[1, 2]",
    "a number": b"7",
    "text": b'"Hello"',
    "null": b"null",
    "not UTF-8": b'{"model": "\xff"}',
    "half a pair": b'{"model": "\\ud800"}',
    "a key twice": b'{"model": "tiny", "model": "tiny"}',
    "NaN": json.dumps(asked(QUESTION, temperature=float("nan"))).encode(),
    "infinity": json.dumps(asked(QUESTION, top_p=float("inf"))).encode(),
    "1e999": json.dumps(asked(QUESTION)).replace('"temperature": 0', '"temperature": 1e999').encode(),
    "many digits": json.dumps(asked(QUESTION)).replace('"max_tokens": 6', '"max_tokens": ' + "9" * 9000).encode(),
    "deep": b'{"a":' * 100_000,
    "deep and whole": b'{"model": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep content": json.dumps(asked(QUESTION, metadata=0)).replace("0}", "[" * 90 + "]" * 90 + "}").encode()[:-1],
    "a long name": json.dumps({"a" * 500_000: 1}).encode(),
    "many names": json.dumps({f"a{n}": n for n in range(50_000)}).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_is_refused_in_words(server: ApiServer, name: str) -> None:
    answered = server.post(BODIES[name])
    assert answered.status == 400 and answered.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "messages",
    [[{}], [None], [[]], {"role": "user"}, [{"role": ["user"], "content": "x"}], [{"role": {}, "content": {}}]],
)
def test_messages_of_the_wrong_type_are_refused(server: ApiServer, messages: Any) -> None:
    assert "messages" in server.post(asked(QUESTION, messages=messages)).error["param"]


def test_every_field_may_be_of_any_wrong_type(server: ApiServer) -> None:
    values = [[], {}, [[]], "x", -1, 1.5, True, {"a": None}]
    fields = [*asked(QUESTION), "n", "seed", "stop", "stream", "stream_options", "compression", "top_p", "tools"]
    for name in fields:
        for value in values:
            answered = server.post(asked(QUESTION, max_tokens=1) | {name: value})
            assert answered.status in (200, 400, 404), (name, value)
            assert answered.status == 200 or answered.error


def test_a_text_that_no_model_could_number_is_refused_before_it_is_cut_into_tokens(
    server: ApiServer, engine, monkeypatch
) -> None:
    """Which takes minutes, in which the server would prepare nothing else."""
    monkeypatch.setattr(engine.inputs, "prompt", lambda *arguments, **options: pytest.fail("it was cut into tokens"))
    text = "word " * 60_000
    for turns in (
        [("system", text), ("user", QUESTION)],
        [("user", text)],
        [("user", QUESTION), ("assistant", text), ("user", QUESTION)],
    ):
        messages = [{"role": role, "content": content} for role, content in turns]
        refused = server.post(asked(QUESTION, messages=messages))
        assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
        assert "can number 512 tokens" in refused.error["message"]


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(server: ApiServer) -> None:
    large = b" " * (2 * MEBIBYTE)
    said = server.post(large)
    assert said.status == 413 and "1 MiB" in said.error["message"]
    chunks = iter([b" " * 65536] * 32)
    unsaid = server.ask("POST", "/v1/chat/completions", chunks, {"Content-Type": "application/json"})  # type: ignore[arg-type]
    assert unsaid.status == 413 and unsaid.error


@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}])
def test_a_body_of_another_kind_is_refused(server: ApiServer, headers: dict[str, str]) -> None:
    """A page of somebody else's can send text to this machine without asking; JSON it cannot."""
    answered = server.post(asked(QUESTION), headers)
    assert answered.status == 415 and "send" in answered.error["message"]


def test_a_client_that_stops_sending_is_left_and_one_that_talks_no_http_is_told(engine: Engine) -> None:
    with ApiServer(engine, ServingLimits(upload_seconds=1.0)) as server:
        stop_sending(server)


def stop_sending(server: ApiServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    lines = (
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: x",
        b"Content-Type: application/json",
        b"Content-Length: 900",
    )
    head = b"\r\n".join([*lines, b"", b""])
    slow = socket.create_connection((host, int(port)), timeout=LONG)
    slow.sendall(head + b'{"model"')
    gone = socket.create_connection((host, int(port)), timeout=LONG)
    gone.sendall(head + b"{")
    gone.close()
    garbage = socket.create_connection((host, int(port)), timeout=LONG)
    garbage.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert b"400" in garbage.recv(4096)
    assert b" 408 " in slow.recv(4096)
    slow.close()
    garbage.close()
    until(lambda: server.service.taken == 0)


def test_bodies_that_are_read_at_once_are_bounded_together(engine: Engine) -> None:
    with ApiServer(engine, ServingLimits(held_bytes=100_000)) as server:
        answered = server.post(b" " * 200_000)
        assert answered.status == 429 and "being read" in answered.error["message"] and answered.headers["retry-after"]
        assert server.service._held == 0 and server.post(asked(QUESTION)).status == 200


def test_a_key_is_asked_for_and_compared_whole(engine: Engine) -> None:
    with ApiServer(engine, keys=("first-key", "second-key")) as server:
        for header in (
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer first",
            "Basic first-key",
            "Bearer first-key2",
            "Bearer é",
        ):
            headers = {} if header is None else {"Authorization": header}
            for answered in (server.post(asked(QUESTION), headers), server.ask("GET", "/v1/models", None, headers)):
                assert answered.status == 401 and answered.error["code"] == "invalid_api_key"
                assert "first" not in answered.error["message"]
        for key in ("first-key", "second-key"):
            assert server.post(asked(QUESTION), {"Authorization": f"bearer {key}"}).status == 200
        assert server.ask("GET", "/health").status == 200 and b"first-key" not in server.ask("GET", "/metrics").content


def test_a_key_that_is_sent_in_the_address_is_refused_and_not_logged(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with ApiServer(engine, keys=("first-key",)) as server:
        logging.getLogger("uvicorn.access").setLevel("INFO")  # as the program has it
        assert server.ask("GET", "/v1/models?api_key=first-key").status == 401
        until(lambda: "/v1/models" in caplog.text)
    assert "first-key" not in caplog.text


@pytest.mark.parametrize("value", ["", " , ", "schlüssel", "a\x01b"])
def test_keys_that_cannot_be_used_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="LLAVA_API_KEYS"):
        AccessKeys.of({"LLAVA_API_KEYS": value})


def test_keys_are_kept_nowhere() -> None:
    keys = AccessKeys.of({"LLAVA_API_KEYS": "one-key two-key,three-key\n"})
    assert repr(keys) == "AccessKeys(3)" and b"one-key" not in b"".join(keys._digests)
    for key in ("one-key", "two-key", "three-key"):
        keys.check(f"Bearer {key}")
    with pytest.raises(ApiError):
        keys.check("Bearer one-key,two-key")
    assert not AccessKeys.of({})


def test_a_model_of_numbers_that_are_not_finite_is_an_error_and_no_answer(engine: Engine) -> None:
    broken = tiny_engine()
    for weight in broken.model.lm_head.parameters():
        weight.data.fill_(float("nan"))
    with ApiServer(broken) as server:
        for stream in (False, True):
            answered = server.post(asked(QUESTION, stream=stream))
            assert answered.status == 500 and answered.error["code"] == "not_finite"
        assert server.ask("GET", "/health").status == 200


PRIVATE = (
    "http://127.0.0.1:{port}/ok",
    "http://localhost:{port}/ok",
    "http://[::1]:{port}/ok",
    "http://[::ffff:127.0.0.1]:{port}/ok",
    "http://2130706433:{port}/ok",
    "http://0x7f.1:{port}/ok",
    "http://0:{port}/ok",
    "http://10.0.0.1/ok",
    "http://169.254.169.254/latest/meta-data",
    "http://[fe80::1]/ok",
    "http://[fd00::1]/ok",
    "http://user:secret@192.168.1.1/ok",
)


def picture_bytes() -> bytes:
    file = io.BytesIO()
    photos(1)[0].save(file, "PNG")
    return file.getvalue()


def script(request: str) -> Any:
    """What the host of images sends for a path."""
    path = request.split(" ")[1]
    return {
        "/ok": reply(picture_bytes()),
        "/hop": reply(status="302 Found", location="/ok"),
        "/inside": reply(status="302 Found", location="http://169.254.169.254/latest/meta-data"),
        "/long": reply(b"x" * (MEBIBYTE + 1)),
        "/gone": reply(status="404 Not Found"),
        "/text": reply(b"Hello"),
        "/slow": [b"HTTP/1.1 200 OK\r\n", 1000.0],
    }[path]


@pytest.fixture(scope="module")
def fetching(engine: Engine) -> Iterator[ApiServer]:
    limits = ServingLimits(body_bytes=MEBIBYTE, fetch_seconds=LONG)
    with ApiServer(engine, limits, fetches=True) as running:
        yield running


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_of_this_machine_or_its_network_is_never_asked(fetching: ApiServer, address: str) -> None:
    with BytesServer(script) as host:
        answered = fetching.post(showing(address.format(port=host.url.rpartition(":")[2])))
        assert answered.status == 400 and answered.error["code"] == "invalid_image"
        assert "secret" not in answered.error["message"] and not host.requests


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/ok", None),
        ("/hop", None),
        ("/inside", "private network"),
        ("/long", "more than 1 MiB"),
        ("/gone", "status 404"),
        ("/text", "accepted formats"),
    ],
)
def test_an_image_of_a_public_host_is_fetched_within_bounds(
    fetching: ApiServer, monkeypatch: pytest.MonkeyPatch, path: str, words: str | None
) -> None:
    """This machine stands for a public host; others that it redirects to are what they are."""
    real = bounded_http.is_public
    monkeypatch.setattr(bounded_http, "is_public", lambda address: address == "127.0.0.1" or real(address))
    with BytesServer(script) as host:
        answered = fetching.post(showing(host.url + path))
    if words is None:
        expected = fetching.post(asked(QUESTION, photos(1)))
        assert answered.json["choices"] == expected.json["choices"]
    else:
        assert answered.status == 400 and words in answered.error["message"]


def test_an_image_that_does_not_come_is_waited_for_no_longer_than_its_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "is_public", lambda address: True)
    with ApiServer(engine, ServingLimits(fetch_seconds=1.0), fetches=True) as server, BytesServer(script) as host:
        answered = server.post(showing(host.url + "/slow"))
    assert answered.status == 400 and "within 1 seconds" in answered.error["message"]


def test_videos_are_not_fetched(fetching: ApiServer) -> None:
    answered = fetching.post(showing("http://example.com/a.mp4", "video_url"))
    assert answered.status == 400 and "data URLs alone" in answered.error["message"]


def test_the_program_says_what_does_not_fit_before_it_loads_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTART_OUTPUT", str(tmp_path / "none"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "LLAVA_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    model = ["--model-path", str(tmp_path)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, expected in (
            ([], "scripts/quickstart.sh"),
            ([*model, "--port", port], "choose others"),
            ([*model, "--host", "no host", "--port", "0"], "choose others"),
            ([*model, "--compression", "duet-1"], "no compression preset"),
            ([*model, "--max-new-tokens", "9000"], "--most-new-tokens"),
            ([*model, "--temperature", "-1"], "temperature is -1"),
        ):
            assert program.main([*words, "--device", "cpu"]) == 2
            assert expected in capsys.readouterr().err
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert program.main([*model, "--allow-image-urls"]) == 2 and "proxy" in capsys.readouterr().err
    monkeypatch.setenv("LLAVA_API_KEYS", " ")
    assert program.main(model) == 2 and "LLAVA_API_KEYS" in capsys.readouterr().err


def test_more_answers_than_ever_find_a_place_are_refused_for_good_and_not_told_to_come_again() -> None:
    limits = program._limits(program._parser().parse_args(["--batch-size", "2", "--waiting", "1"]))
    assert limits.choices == 3
    with pytest.raises(ApiError, match="n is 4; it must be a whole number from 1 to 3"):
        read_completion(asked(QUESTION, n=4), AskingDefaults(MODEL), limits)


def test_what_the_server_does_by_default_is_not_refused_as_if_the_client_had_asked_for_it() -> None:
    """Under `--temperature 3` every request that named none was told that its temperature is 3."""
    defaults, limits = AskingDefaults(MODEL, temperature=3.0), ServingLimits()
    assert read_completion(asked(QUESTION, temperature=None), defaults, limits).rows[0].temperature == 3
    with pytest.raises(ApiError, match="temperature is 3; it must be a number from 0 to 2"):
        read_completion(asked(QUESTION, temperature=3), defaults, limits)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "llava.serve.graceful_server")
    assert program.main(["--model-path", "m"]) == 2
    assert "uvicorn" in (said := capsys.readouterr().err) and ".[serve]" in said


def test_the_servers_counts_end_where_they_began(server: ApiServer) -> None:
    until(lambda: figures(server)["llava_rows_waiting"] == figures(server)["llava_rows_answering"] == 0)
