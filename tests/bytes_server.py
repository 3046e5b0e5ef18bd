"""A server on this machine that sends what a test tells it to, byte by byte if need be."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event, Thread

Script = Callable[[str], Iterable[bytes | float]]
"""From a request to the pieces of the reply; a number is a pause of so many seconds."""


def reply(body: bytes = b"", status: str = "200 OK", **headers: str) -> list[bytes]:
    """A whole HTTP reply; headers by their names with underscores."""
    named = {"content_length": str(len(body))} | headers
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in named.items() if value)]
    return ["\r\n".join([*lines, "", ""]).encode(), body]


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    return bool(end) and len(body) >= int(length[1] if length else 0)


class BytesServer:
    """Serves every connection in a thread of its own; use it as a context manager.

    Args:
        script: makes the reply.
        certificate: of a server that speaks TLS: a file with key and certificate.

    Attributes:
        requests: heads and bodies of all requests, in order.
        url: without a slash at its end.
    """

    def __init__(self, script: Script, certificate: Path | None = None) -> None:
        self.requests: list[str] = []
        self._script = script
        self._closing = Event()
        self._context: ssl.SSLContext | None = None
        if certificate:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' * bool(certificate)}://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> BytesServer:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection:
                request = b""
                while not _is_whole(request) and (piece := connection.recv(65536)):
                    request += piece
                self.requests.append(request.decode("latin-1"))
                for piece in self._script(self.requests[-1]):
                    if isinstance(piece, bytes):
                        connection.sendall(piece)
                    elif self._closing.wait(piece):
                        return
        except OSError:  # the client has gone
            return
