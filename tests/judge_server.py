"""A server on this machine that imitates the endpoint of a judge, and fails where it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

Answer = Callable[[dict[str, Any]], str]

MODEL = "judge-2026-01-01"
HANG = "hang"
GARBAGE = "garbage"


class JudgeServer:
    """Answers chat completions; use it as a context manager.

    Args:
        answer: makes the text of the answer from the content of a request.
        faults: what happens to the first requests, one each: a status, `GARBAGE` (200 and no JSON), `HANG` (nothing,
            until the server is closed) or None (an ordinary answer).
        refused: parameters that the server refuses with status 400, one at a time.

    Attributes:
        requests: the contents of all requests, in order.
        keys: the authorization headers of all requests.
    """

    def __init__(self, answer: Answer, faults: Sequence[int | str | None] = (), refused: Sequence[str] = ()) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._answer = answer
        self._faults = list(faults)
        self._refused = refused
        self._lock = Lock()
        self._closing = Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The protocol's root."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def questions(self) -> list[str]:
        """The last message of each request."""
        return [request["messages"][-1]["content"] for request in self.requests]

    def environment(self, **changes: str) -> dict[str, str]:
        """Variables that name this server as the judge."""
        return {"LLAVA_JUDGE_URL": self.url, "LLAVA_JUDGE_MODEL": "judge", "LLAVA_JUDGE_TIMEOUT": "1000"} | changes

    def __enter__(self) -> JudgeServer:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _take(self, content: dict[str, Any], key: str | None) -> int | str | None:
        with self._lock:
            self.requests.append(content)
            self.keys.append(key)
            return self._faults.pop(0) if self._faults else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fault = server._take(content, self.headers.get("Authorization"))
                if self.path != "/v1/chat/completions":
                    self._send(404, "no such path")
                elif fault == HANG:
                    server._closing.wait()
                elif fault == GARBAGE:
                    self._send(200, "<html>Welcome</html>")
                elif isinstance(fault, int):
                    self._send(fault, json.dumps({"error": {"message": f"fault {fault}"}}))
                elif named := [name for name in server._refused if name in content]:
                    self._send(400, json.dumps({"error": {"message": f"Unsupported parameter: '{named[0]}'."}}))
                else:
                    message = {"role": "assistant", "content": server._answer(content)}
                    self._send(200, json.dumps({"model": MODEL, "choices": [{"message": message}]}))

            def _send(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is logged."""

        return Handler
