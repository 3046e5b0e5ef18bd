"""Servers of images that lie, drip, loop or point inside: one question and the chat end with a sentence, in time."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Iterable
from itertools import chain, repeat
from pathlib import Path

import pytest
from bytes_server import BytesServer, reply
from PIL import Image
from tiny_folder import write_model

from llava.eval import run_llava
from llava.inference import typed_images
from llava.serve import cli


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "PNG")
    return file.getvalue()


PNG = picture()
SECONDS = 1.5
BOMB = gzip.compress(b"\0" * (typed_images.IMAGE_BYTES + 1))


def answers(request: str) -> Iterable[bytes | float]:
    """What the server sends for a path; `/ok`, `/hop3` and `/negative` are fine."""
    path = request.split(" ")[1]
    if path.startswith("/hop") and path != "/hop0":
        return reply(status="302 Found", location=f"/hop{int(path[4:]) - 1}")
    dripping = (piece for byte in repeat(b"x") for piece in (byte, 0.05))
    endless = (b"x" * 65536 for _ in repeat(None))
    head = b"HTTP/1.1 200 OK\r\n"
    others: dict[str, Iterable[bytes | float]] = {
        "/loop": reply(status="302 Found", location="/loop"),
        "/inside": reply(status="302 Found", location="http://169.254.169.254/latest/meta-data"),
        "/beside": reply(status="301 Moved", location="http://[::1]:22/"),
        "/tunnel": reply(status="307 x", location="http://[64:ff9b::7f00:1]/"),
        "/file": reply(status="302 Found", location="file:///etc/passwd"),
        "/ftp": reply(status="302 Found", location="ftp://127.0.0.1/x.png"),
        "/nowhere": reply(status="302 Found", location="http://"),
        "/silent": [1000.0],
        "/drip": chain([head + b"\r\n"], dripping),
        "/drip-head": chain([head], dripping),
        "/early": [head + b"Content-Length: 5000\r\n\r\n" + PNG],
        "/short": reply(PNG, content_length=str(len(PNG) // 2)),
        "/long": reply(PNG, content_length=str(10**15)),
        "/negative": reply(PNG, content_length="-5"),
        "/endless": chain([head + b"\r\n"], endless),
        "/bomb": reply(BOMB, content_encoding="gzip"),
        "/half-gzip": reply(gzip.compress(PNG)[:-9], content_encoding="gzip"),
        "/gone": reply(PNG, status="404 Not Found"),
        "/broken": reply(PNG, status="500 Oops"),
        "/partial": reply(PNG, status="206 Partial Content"),
        "/none": reply(b"", status="204 No Content"),
        "/html": reply(b"<html>sign in</html>"),
        "/empty": reply(b""),
        "/noise": [b"\xff\x00SSH-2.0-OpenSSH\r\n"],
        "/closed": [],
    }
    return others.get(path, reply(PNG))


SAID = {
    "/loop": "redirects more than 3 times",
    "/hop4": "redirects more than 3 times",
    "/inside": "only public hosts",
    "/beside": "only public hosts",
    "/tunnel": "only public hosts",
    "/file": "begins with 'file'",
    "/ftp": "begins with 'ftp'",
    "/nowhere": "redirects more than",
    "/early": "broke off",
    "/short": "cannot be read",
    "/long": "more than",
    "/endless": "more than",
    "/bomb": "more than",
    "/half-gzip": "broke off",
    "/gone": "status 404",
    "/broken": "status 500",
    "/partial": "status 206",
    "/none": "status 204",
    "/html": "cannot be read",
    "/empty": "cannot be read",
    "/noise": "check the address",
    "/closed": "check the address",
    "/silent": "within 1.5 seconds",
    "/drip": "within 1.5 seconds",
    "/drip-head": "within 1.5 seconds",
}


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed_images, "IMAGE_TIMEOUT", 300.0)  # no busy machine needs that long
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_one_question_ends_with_a_sentence_whatever_an_images_server_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with BytesServer(answers) as server:
        for path, words in SAID.items():
            if "within" in words:
                monkeypatch.setattr(typed_images, "IMAGE_TIMEOUT", SECONDS)
            status = run_llava.main(
                ["--model-path", "none/such", "--query", "Why?", "--image-file", server.url + path, "--device", "cpu"]
            )
            said = capsys.readouterr().err
            assert status == 2 and words in said and path in said and "Traceback" not in said, (path, said)
            assert len(said) < 500 and said.strip().isprintable(), said


def test_the_chat_goes_on_after_every_image_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "llava-v1.5-tiny")
    paths = [path for path in SAID if path not in ("/silent", "/drip", "/drip-head")] + ["/hop3", "/negative", "/ok"]
    with BytesServer(answers) as server:
        lines = [f"/image {server.url}{path}" for path in paths] + ["What is it?"]
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        words = ["--model-path", str(folder), "--device", "cpu", "--temperature", "0", "--max-new-tokens", "2"]
        assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert err.count("cannot be read") == len(paths) - 3 and "Traceback" not in err
    assert len(out.splitlines()) >= 4, "three images were taken, and the question answered"
