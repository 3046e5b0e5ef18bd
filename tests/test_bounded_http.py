"""Requests end in time, take no more than they may, and go only where they may go."""

from __future__ import annotations

import gzip
import itertools
import shutil
import signal
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bytes_server import BytesServer, reply

from llava.common import timed_connections
from llava.common.bounded_http import FetchError, Response, fetch
from llava.common.timed_connections import is_public

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def ask(address: str, **changes: Any) -> Response:
    return fetch(address, **({"max_bytes": 1000, "seconds": 60.0} | changes))


def drips(start: bytes, piece: bytes) -> Callable[[str], Iterator[bytes | float]]:
    return lambda _: itertools.chain([start], itertools.cycle([piece, 0.02]))


def test_a_reply_comes_back_as_it_was_sent() -> None:
    with BytesServer(lambda _: reply(b"picture", X_Test="Yes")) as server:
        got = ask(f"{server.url}/a b/ü.png?x=é&y=%20#part", headers={"Accept": "image/*"})
        assert (got.status, got.body, got.headers["x-test"]) == (200, b"picture", "Yes")
        assert ask(server.url, data=b"{}", headers={"Content-Type": "application/json"}).body == b"picture"
    first, second = server.requests
    assert first.startswith("GET /a%20b/%C3%BC.png?x=%C3%A9&y=%20 HTTP/1.1\r\n") and "Accept: image/*\r\n" in first
    assert second.startswith("POST / HTTP/1.1\r\n") and second.endswith("\r\n\r\n{}") and "Content-Length: 2" in second


@pytest.mark.parametrize(
    "script",
    [
        lambda _: iter([300.0]),
        drips(b"", b"H"),
        drips(HEAD, b"X-A: 1\r\n"),
        drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drips(HEAD + b"Content-Length: 999\r\n\r\n", b"a"),
        drips(HEAD + b"\r\n", b"a"),
        drips(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        drips(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: 1\r\n"),
    ],
    ids=["silent", "status", "headers", "continue", "body", "body to the end", "chunks", "trailers"],
)
def test_a_server_that_drips_is_left_in_time(script: Callable[[str], Iterable[bytes | float]]) -> None:
    """Each read gets a byte long before a timeout of reads would end it."""
    with BytesServer(script) as server:
        start = time.monotonic()
        with pytest.raises(FetchError) as refused:
            ask(server.url, seconds=0.25)
        assert time.monotonic() - start < 60
    assert refused.value.transient
    assert str(refused.value) in (
        f"{server.url} gave no whole reply within 0.25 seconds; try again later.",
        f"{server.url} did not answer as HTTP says (HTTPException); check the address.",  # more than 100 headers
    )


def test_redirects_count_against_the_same_time() -> None:
    with (
        BytesServer(lambda _: [0.1, *reply(status="302 Found", location="/next")]) as server,
        pytest.raises(FetchError, match=r"no whole reply within 0.25 seconds"),
    ):
        ask(server.url, seconds=0.25, redirects=20)
    assert len(server.requests) <= 3


def test_a_name_that_nobody_answers_for_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: asleep.wait(300) and [])
    with pytest.raises(FetchError, match=r"http://example.org gave no whole reply within 0.2 seconds"):
        ask("http://example.org/a", seconds=0.2)
    asleep.set()


@pytest.mark.parametrize(
    "sent",
    [
        reply(b"a" * 1001),
        [HEAD + b"\r\n", b"a" * 5000],
        [HEAD + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n"],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *([b"100\r\n" + b"a" * 256 + b"\r\n"] * 5), 30.0],
        reply(gzip.compress(bytes(10**6)), content_encoding="gzip"),
        reply(gzip.compress(bytes(600)) * 2, content_encoding="gzip"),
        reply(zlib.compress(bytes(10**6)), content_encoding="deflate"),
    ],
    ids=["announced", "not announced", "absurd", "chunks", "gzip bomb", "two members", "zlib bomb"],
)
def test_no_more_is_read_than_may_be(sent: list[bytes | float]) -> None:
    with (
        BytesServer(lambda _: sent) as server,
        pytest.raises(FetchError, match="sends more than 1000 bytes, which is the most that is read here"),
    ):
        ask(server.url)


def test_the_largest_body_that_is_allowed_is_taken() -> None:
    for sent in (reply(b"a" * 1000), reply(gzip.compress(b"a" * 500) * 2, content_encoding="gzip")):
        with BytesServer(lambda _, sent=sent: sent) as server:
            assert ask(server.url).body == b"a" * 1000


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([HEAD + b"Content-Length: 9\r\n\r\nabc"], "broke off after 3 of 9 bytes"),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc"], r"did not answer as HTTP says \(IncompleteRead\)"),
        (reply(gzip.compress(b"abc" * 99)[:-12], content_encoding="gzip"), "broke off within a compressed body"),
        (reply(b"no gzip", content_encoding="gzip"), "a compressed body that cannot be decompressed"),
        (reply(b"abc", content_encoding="br"), "compresses with 'br'; accepted are gzip, deflate and none"),
        ([b"\x1b[31mSSH-2.0\r\n"], r"did not answer as HTTP says \(BadStatusLine\)"),
        ([b"HTTP/1.1 200 " + b"a" * 70000], r"did not answer as HTTP says \(LineTooLong\)"),
        ([], r"did not answer as HTTP says \(RemoteDisconnected\)"),
    ],
)
def test_a_reply_that_is_not_whole_is_no_reply(sent: list[bytes | float], said: str) -> None:
    with BytesServer(lambda _: sent) as server, pytest.raises(FetchError, match=said) as refused:
        ask(server.url)
    assert str(refused.value).isprintable()


def test_the_status_comes_back_whatever_becomes_of_its_body() -> None:
    for sent in (
        reply(b"no such thing", "404 Not Found"),
        reply(b"no such thing", "404 Not Found", content_length="99"),
        [*reply(b"no such thing", "404 Not Found", content_length=str(10**9)), b"x" * 2000],
    ):
        with BytesServer(lambda _, sent=sent: sent) as server:
            got = ask(server.url)
        assert got.status == 404 and got.body.startswith(b"no such thing") and len(got.body) <= 1000


@pytest.mark.parametrize(
    "address",
    [
        "",
        "picture.png",
        "ftp://host/a",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://",
        "http:///a",
        "http://host:99999/",
        "http://host:x/",
        "http://host:0/",
        "http://host:-1/",
        "http://a b/",
        "http://[::1/",
        "http://[hello]/",
        "http://exa\nmple.org/",
        "http://host/\r\nX-Evil: 1",
        "http://host/\x00",
        "http://host/\ud800",
        "http://\ud800/",
        "http://a..b/",
        f"http://{'a' * 64}.org/",
        f"http://{'a.' * 200}org/",
        "http://%31/",
        "http://us er:pa\tss@host/",
        "https://\u2100.org/",
    ],
)
def test_what_is_no_address_is_refused_in_words(address: str) -> None:
    with pytest.raises(FetchError, match=r"^The address .*accepted is http\(s\)://HOST") as refused:
        ask(address)
    assert str(refused.value).isprintable() and not refused.value.transient


def test_passwords_and_keys_are_sent_but_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with BytesServer(lambda _: []) as server:
        address = server.url.replace("//", "//me:se%20cret@")
        with pytest.raises(FetchError) as refused:
            ask(f"{address}/?key=secret2", headers={"X-Key": "secret3"})
    assert "Authorization: Basic bWU6c2UgY3JldA==\r\n" in server.requests[0]
    assert "se" + "cret" not in str(refused.value) and "me:" not in str(refused.value)
    for value in ("secret\r\nX: 1", "secret\n", "sécret", "secret\ud800"):
        with pytest.raises(FetchError, match="The header 'Authorization' holds characters") as refused:
            ask("http://127.0.0.1/", headers={"Authorization": value})
        assert "secret" not in str(refused.value)


def test_a_server_that_is_not_there_is_said() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match=r"127.0.0.1.* cannot be reached: Connection refused") as refused:
            ask(f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert refused.value.transient


def redirecting(*locations: str) -> Callable[[str], list[bytes]]:
    """Redirects /0 to the first location, /1 to the second, ...; any other path has a picture."""

    def script(head: str) -> list[bytes]:
        number = head.split()[1].removeprefix("/")
        if number.isdigit() and int(number) < len(locations):
            return reply(status="302 Found", location=locations[int(number)])
        return reply(b"picture")

    return script


def test_redirects_are_followed_where_they_are_asked_for() -> None:
    with BytesServer(redirecting("/1", "2", "?x")) as server:
        assert ask(server.url + "/0").status == 302 and len(server.requests) == 1
        assert ask(server.url + "/0", data=b"{}", redirects=9).status == 302
        got = ask(server.url + "/0", redirects=3, headers={"Authorization": "Bearer k"})
        assert (got.body, got.address) == (b"picture", server.url + "/2?x")
        assert all("Authorization: Bearer k" in head for head in server.requests[2:])
        with pytest.raises(FetchError, match="redirects more than 2 times"):
            ask(server.url + "/0", redirects=2)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/",
        "http://localhost/",
        "//127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://0.0.0.0/",
        "http://0/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "https://172.16.0.1/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://１２７.0.0.1/",
    ],
)
def test_a_redirect_to_a_private_host_is_refused(location: str) -> None:
    with (
        BytesServer(redirecting(location)) as server,
        pytest.raises(FetchError, match=r"\S+ is on this machine or in a private network; only"),
    ):
        ask(server.url + "/0", redirects=3)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://a/b", "data:,x", "http://[", "http://a b/", "http://h:0"]
)
def test_a_redirect_to_what_is_no_address_is_refused(location: str) -> None:
    with (
        BytesServer(redirecting(location)) as server,
        pytest.raises(FetchError, match=f"^{server.url} redirects to an address that"),
    ):
        ask(server.url + "/0", redirects=3)


def test_a_host_that_points_inside_is_refused_where_only_public_ones_are_accepted() -> None:
    with BytesServer(redirecting()) as server:
        for address in (server.url, server.url.replace("127.0.0.1", "localhost")):
            with pytest.raises(FetchError, match="only public hosts are accepted here") as refused:
                ask(address, public_only=True)
            assert ("127.0.0.1" in str(refused.value)) == ("127.0.0.1" in address), "what a name leads to is not told"
    assert server.requests == []


def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers otherwise the second time does not lead inside."""
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1"])
    asked, connected = [], []

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), 0))]

    def connect(_: socket.socket, place: Any) -> None:
        connected.append(place)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(timed_connections._TimedSocket, "connect", connect, raising=False)
    with pytest.raises(FetchError, match="cannot be reached"):
        ask("http://rebinding.example:8080/", public_only=True)
    assert asked == ["rebinding.example"] and connected == [("93.184.216.34", 8080)]


def test_keys_stay_with_the_host_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.common.bounded_http.is_public", lambda address: True)
    with (
        BytesServer(redirecting()) as other,
        BytesServer(lambda _: reply(status="307 x", location=other.url)) as server,
    ):
        address = server.url.replace("//", "//me:secret@")
        headers = {"authorization": "Bearer k", "Cookie": "c=1", "Accept": "image/*"}
        assert ask(address, redirects=1, headers=headers).body == b"picture"
    assert "Bearer k" in server.requests[0] and "Accept: image/*" in other.requests[0]
    assert not any(word in other.requests[0] for word in ("Authorization", "Bearer", "Basic", "Cookie"))


@pytest.mark.parametrize(
    ("address", "public"),
    {
        "8.8.8.8": True,
        "2606:4700:4700::1111": True,
        "64:ff9b::808:808": True,
        "::ffff:8.8.8.8": True,
        "127.0.0.1": False,
        "0.0.0.0": False,
        "255.255.255.255": False,
        "224.0.0.1": False,
        "240.0.0.1": False,
        "100.64.0.1": False,
        "169.254.169.254": False,
        "192.0.2.1": False,
        "198.18.0.1": False,
        "::": False,
        "::1": False,
        "::127.0.0.1": False,
        "::ffff:10.0.0.1": False,
        "64:ff9b::a00:1": False,
        "64:ff9b:1::1": False,
        "2002:7f00:1::": False,
        "2001:0:53aa:64c::1": False,
        "fec0::1": False,
        "fe80::1%eth0": False,
        "ff02::1": False,
        "2001:db8::1": False,
        "no address": False,
        "": False,
        "3fff::1": False,
        "3fff:fff::1": False,
        "192.88.99.1": False,
        "192.0.0.8": False,
        "192.0.0.9": False,
        "2002:c0a8:1::1": False,
        "2002:808:808::1": True,
        "2600::5efe:808:808": False,
        "2600::200:5efe:a00:1": False,
        "fe80::5efe:a00:1": False,
        "2002:808:808::5efe:a00:1": False,
        "64:ff9b::7f00:1": False,
        "64:ff9b::c058:6301": False,
        "::ffff:192.0.0.8": False,
        "::ffff:127.0.0.1": False,
        "::ffff:0:127.0.0.1": False,
        "2001:0:808:808::1": False,
        "2001:2::1": False,
        "2001:20::1": False,
        "2001:200::1": True,
        "::8.8.8.8": False,
        "5f00::1": False,
        "100::1": False,
        "0x7f.1": False,
        "127.1": False,
        "2130706433": False,
        "017700000001": False,
    }.items(),
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_proxies_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with BytesServer(redirecting()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//user:word@"))
        assert ask("http://a.invalid/x", public_only=True).body == b"picture"  # the proxy knows the name
        with pytest.raises(FetchError, match="only public hosts"):
            ask("http://169.254.169.254/", public_only=True)
        monkeypatch.setenv("no_proxy", "a.invalid")
        with pytest.raises(FetchError, match=r"The host of http://a.invalid is not known here; check the address"):
            ask("http://a.invalid/x")
    assert [head.split("\r\n")[0] for head in proxy.requests] == ["GET http://a.invalid/x HTTP/1.1"]
    assert "Proxy-Authorization: Basic dXNlcjp3b3Jk" in proxy.requests[0].replace("-authorization", "-Authorization")
    with BytesServer(lambda _: reply(status="403 \x1b[31mForbidden")) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(
            FetchError, match=r"^The proxy of this machine does not connect to https://b.invalid; check"
        ):
            ask("https://b.invalid/")
    with BytesServer(drips(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n")) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(FetchError):
            ask("https://b.invalid/", seconds=0.2)


def test_over_tls_the_same_bounds_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        BytesServer(lambda _: iter([30.0])) as silent,
        pytest.raises(FetchError, match=r"no whole reply within 0.2 seconds"),
    ):
        ask(silent.url.replace("http", "https"), seconds=0.2)
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    key, both = tmp_path / "key.pem", tmp_path / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(both)]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    both.write_text(both.read_text() + key.read_text())
    with BytesServer(lambda _: reply(b"picture"), both) as server:
        with pytest.raises(FetchError, match="shows a certificate that is not trusted: self-signed certificate"):
            ask(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(both))
        assert ask(server.url).body == b"picture"
    with BytesServer(drips(HEAD + b"\r\n", b"a"), both) as server:
        start = time.monotonic()
        with pytest.raises(FetchError, match=r"no whole reply within 0.3 seconds"):
            ask(server.url, seconds=0.3)
        assert time.monotonic() - start < 60


def test_ctrl_c_ends_the_wait_at_once() -> None:
    with BytesServer(drips(HEAD + b"\r\n", b"a")) as server:
        former = signal.signal(signal.SIGALRM, signal.default_int_handler)
        start = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                ask(server.url, seconds=300, max_bytes=10**9)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        assert time.monotonic() - start < 60


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_request_without_end_is_not_begun(seconds: float) -> None:
    with pytest.raises(FetchError, match="give a finite number above 0"):
        ask("http://127.0.0.1/", seconds=seconds)
    with pytest.raises(FetchError, match="cannot be reached"):
        ask("http://127.0.0.1:9/", seconds=1e300)
