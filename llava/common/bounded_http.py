"""HTTP requests with limits on time, on bytes of the reply, and on the addresses they may reach.

Every program here that asks a server does so through `fetch`.

The standard library speaks the protocol (proxies of the environment, TLS, chunks); what is added is

- one deadline for everything together: names, connections, TLS, headers, body and redirects. Timeouts of HTTP libraries
  are for single reads, so that a server which sends a byte now and then holds a program for ever;
- a limit on the body, before and after decompression;
- redirects that are counted and lead to public hosts. The address that was checked is the one that is connected to:
  a name is looked up once in a request.

Through a proxy it is the proxy that looks names up. What can be looked up here as well is checked here; names that only
the proxy knows are left to it.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import math
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from llava.common.shown import LONGEST, printable, shown_bytes
from llava.common.timed_connections import PlainConnection, Route, TimedTls, TlsConnection, is_public

USER_AGENT = "duet-llava"
MOST_OF_AN_ERROR = 64 * 1024
"""Bytes that are read of a reply whose status is not 2xx."""

_REDIRECTS = (301, 302, 303, 307, 308)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PIECE = 65536
_IN_PATHS = "/%:=&?~#+!$,;'@()*[]|"


class FetchError(ValueError):
    """A request that got no reply which may be used; the message is a sentence and holds no secrets.

    Attributes:
        transient: whether the same request may succeed another time.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


@dataclass(frozen=True)
class Response:
    """What a server answered.

    Attributes:
        status: status of the reply, whatever it is.
        headers: headers by their names in small letters.
        body: decompressed; of a status that is not 2xx what arrives of the first 64 KiB.
        address: that answered, after redirects, without user and password.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    address: str


def fetch(
    address: str,
    *,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    max_bytes: int,
    seconds: float,
    redirects: int = 0,
    public_only: bool = False,
) -> Response:
    """Ask a server once: GET, or POST where there is data.

    Args:
        address: http(s); a user and password in it are sent as basic authorization.
        data: body of the request.
        headers: headers of the request. `Authorization` and cookies stay with the first host, port and scheme.
        max_bytes: longest body that is taken.
        seconds: time limit from the call to the end of the body, all redirects included.
        redirects: that are followed where no data are sent; with 0 a redirect is a reply like others. They lead to
            public hosts only, or to the host and port of `address` itself.
        public_only: the address itself has to be public, too.

    Raises:
        FetchError: if there is no whole reply within the bounds, or the address is none or not allowed.
    """
    if not 0 < seconds < math.inf:
        raise FetchError(f"A request may take {seconds} seconds; give a finite number above 0.")
    route = Route(time.monotonic() + seconds)
    first = target = _target(address)
    sent = _checked_headers(headers or {})
    for _ in range(redirects + 1):
        with _explained(target, seconds):
            if public_only or not _same_place(first, target):
                _check_public(target, route)
            keeps = (target.scheme, target.host, target.port) == (first.scheme, first.host, first.port)
            response, location = _ask(target, data, sent if keeps else _without_secrets(sent), route, max_bytes)
        if location is None or not redirects or data is not None:
            return response
        target = _redirected(target, location)
    raise FetchError(f"{first.name} redirects more than {redirects} times; give the address that it ends at.")


def check_address(address: str) -> None:
    """Refuse an address that `fetch` would refuse whatever answers there.

    Raises:
        FetchError: if it is no http(s) address.
    """
    _target(address)


@dataclass(frozen=True)
class _Target:
    scheme: str
    host: str
    port: int
    url: str
    login: str | None = field(repr=False)

    @property
    def name(self) -> str:
        """Address of the server without password and query, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


def _target(address: str, what: str = "The address") -> _Target:
    """An address taken apart, and written as it is sent.

    Raises:
        FetchError: if it is none; says nothing of its path, which may hold keys.
    """
    accepted = "accepted is http(s)://HOST[:PORT]/PATH"
    if re.search(r"[\x00-\x1f\x7f]", address):
        raise FetchError(f"{what} holds control characters; {accepted} on one line.")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        scheme = parts.scheme.lower()
        if scheme not in _DEFAULT_PORTS:
            raise FetchError(f"{what} begins with {scheme[:20]!r}; {accepted}.")
        host = host if ":" in host else host.encode("idna").decode("ascii")
        valid = ipaddress.IPv6Address(host) if ":" in host else re.fullmatch(r"[\w.-]{1,253}", host, re.ASCII)
        path = quote(parts.path or "/", safe=_IN_PATHS) + (f"?{quote(parts.query, safe=_IN_PATHS)}" * bool(parts.query))
    except FetchError:
        raise
    except ValueError as error:  # of urlsplit, ports, IDNA, IPv6 and lone surrogates
        raise FetchError(f"{what} has no valid host and port, or characters that none has; {accepted}.") from error
    if not valid or port == 0:
        raise FetchError(f"{what} has no valid host and port; {accepted}.")
    login = None
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    target = _Target(scheme, host, port or _DEFAULT_PORTS[scheme], "", login)
    return _Target(scheme, host, target.port, target.name + path, login)


def _redirected(target: _Target, location: str) -> _Target:
    what = f"{target.name} redirects to an address that"
    try:
        return _target(urljoin(target.url, location), what)
    except FetchError:
        raise
    except ValueError as error:  # of urljoin
        raise FetchError(f"{what} is none.") from error


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not re.fullmatch(r"[\x20-\x7e]*", value):
            raise FetchError(f"The header {name!r} holds characters that no header may hold; send plain ASCII text.")
    return dict(headers)


def _without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in ("authorization", "cookie")}


def _same_place(first: _Target, target: _Target) -> bool:
    upgraded = first.port == _DEFAULT_PORTS["http"] and target.port == _DEFAULT_PORTS["https"]
    return target.host == first.host and (target.port == first.port or upgraded)


def _check_public(target: _Target, route: Route) -> None:
    try:
        addresses = [str(place[0]) for _, place in route.addresses(target.host)]
    except socket.gaierror:
        if _is_proxied(target):
            return
        raise
    if not all(map(is_public, addresses)):  # which they are says something about the network here, so it is not told
        raise FetchError(
            f"{target.name} is on this machine or in a private network; only public hosts are accepted here."
        )


def _is_proxied(target: _Target) -> bool:
    proxies = urllib.request.getproxies()
    return target.scheme in proxies and not urllib.request.proxy_bypass(f"{target.host}:{target.port}")


class _Handler(urllib.request.AbstractHTTPHandler):
    def __init__(self, route: Route) -> None:
        super().__init__()
        self._route = route

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(PlainConnection, route=self._route), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        context = ssl.create_default_context()
        context.sslsocket_class = type("RoutedTls", (TimedTls,), {"route": self._route})
        return self.do_open(partial(TlsConnection, route=self._route, context=context), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


def _ask(
    target: _Target, data: bytes | None, headers: Mapping[str, str], route: Route, max_bytes: int
) -> tuple[Response, str | None]:
    """One reply, and where it redirects to."""
    opener = urllib.request.OpenerDirector()
    opener.addheaders = [("User-Agent", USER_AGENT), ("Accept-Encoding", "identity")]
    for handler in (urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), _Handler(route)):
        opener.add_handler(handler)
    request = urllib.request.Request(target.url, data, dict(headers))
    if target.login is not None and not request.has_header("Authorization"):
        request.add_unredirected_header("Authorization", "Basic " + b64encode(target.login.encode()).decode())
    with opener.open(request, timeout=route.left()) as reply:
        found = {name.lower(): value for name, value in reply.headers.items()}
        if reply.status in _REDIRECTS and found.get("location"):
            location = found["location"].encode("latin-1", "replace").decode("utf-8", "replace")
            return Response(reply.status, found, b"", target.url), location
        if 200 <= reply.status < 300:
            body = b"".join(_pieces(reply, target, max_bytes, route))
        else:
            body = _what_arrives(reply, target, min(max_bytes, MOST_OF_AN_ERROR), route)
    return Response(reply.status, found, body, target.url), None


def _what_arrives(reply: http.client.HTTPResponse, target: _Target, most: int, route: Route) -> bytes:
    """The beginning of a body; that it is cut off, broken or late is no reason to lose the status."""
    body = b""
    with contextlib.suppress(FetchError, OSError, http.client.HTTPException, zlib.error):
        for piece in _pieces(reply, target, math.inf, route):
            body += piece
            if len(body) >= most:
                break
    return body[:most]


def _pieces(reply: http.client.HTTPResponse, target: _Target, most: float, route: Route) -> Iterator[bytes]:
    """The decompressed body, piece by piece, each of bounded size."""
    length, came, made = reply.length, 0, 0
    too_large = FetchError(f"{target.name} sends more than {shown_bytes(most)}, which is the most that is read here.")
    if length is not None and length > most:
        raise too_large
    inflating = _inflating(reply.headers.get("Content-Encoding", ""), target)
    while piece := reply.read1(_PIECE):
        route.left()
        came += len(piece)
        for part in inflating.parts(piece) if inflating else (piece,):
            made += len(part)
            if made > most:
                raise too_large
            yield part
        if came > most:
            raise too_large
    if length is not None and came < length:
        raise FetchError(f"{target.name} broke off after {came} of {length} bytes; try again.", transient=True)
    if inflating and not inflating.is_whole:
        raise FetchError(f"{target.name} broke off within a compressed body; try again.", transient=True)


class _Inflating:
    """Gzip (of several members, too) and zlib, in parts of bounded size."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 32)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the body is missing."""
        return self._stream.eof

    def parts(self, piece: bytes) -> Iterator[bytes]:
        """Decompress a piece of the body, in parts of bounded size."""
        while piece:
            if self._stream.eof:
                self._stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
            part = self._stream.decompress(piece, _PIECE)
            piece = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            yield part


def _inflating(encoding: str, target: _Target) -> _Inflating | None:
    """What decompresses a body; None where it comes as it is."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip", "deflate"):
        return _Inflating()
    raise FetchError(f"{target.name} compresses with {encoding[:20]!r}; accepted are gzip, deflate and none.")


@contextlib.contextmanager
def _explained(target: _Target, seconds: float) -> Iterator[None]:
    """Say in a sentence why there is no reply.

    Raises:
        FetchError: for what sockets, TLS, HTTP and decompression raise.
    """
    try:
        yield
    except FetchError:
        raise
    except zlib.error as error:
        raise FetchError(f"{target.name} sends a compressed body that cannot be decompressed.", True) from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise _as_sentence(error, target, seconds) from error


def _as_sentence(error: BaseException, target: _Target, seconds: float) -> FetchError:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return FetchError(f"{target.name} gave no whole reply within {seconds:g} seconds; try again later.", True)
    if isinstance(cause, socket.gaierror | UnicodeError):
        return FetchError(f"The host of {target.name} is not known here; check the address.", True)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return FetchError(f"{target.name} shows a certificate that is not trusted: {_plain(cause.verify_message)}.")
    if isinstance(cause, OSError) and cause.strerror:
        return FetchError(f"{target.name} cannot be reached: {_plain(cause.strerror)}.", True)
    if "Tunnel connection failed" in str(cause):
        return FetchError(f"The proxy of this machine does not connect to {target.name}; check its settings.", True)
    kind = type(cause).__name__ if isinstance(cause, BaseException) else "unknown"
    return FetchError(f"{target.name} did not answer as HTTP says ({kind}); check the address.", True)


def _plain(text: Any) -> str:
    return printable(text, LONGEST).rstrip(".")
