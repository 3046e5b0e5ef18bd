"""A server that ends gracefully: what is under way is finished within a time, and what is new is refused in words."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

logger = logging.getLogger(__name__)

_LAST_WRITES = 5
"""Seconds in which replies have to be written once everything is answered."""


class GracefulServer(uvicorn.Server):
    """uvicorn's server, which on SIGTERM or Ctrl-C goes on listening until nothing is under way.

    uvicorn alone closes its socket first, so that new clients find nobody where they could be told to come again. A
    second signal ends at once.

    Args:
        config: of uvicorn.
        begin_ending: called once, when the server is asked to end.
        under_way: how many answers are.
        give_up: called when the time is over, for what is under way to fail.
        seconds: the time.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        begin_ending: Callable[[], None],
        under_way: Callable[[], int],
        give_up: Callable[[], None],
        seconds: float,
    ) -> None:
        super().__init__(config)
        self._begin_ending = begin_ending
        self._under_way = under_way
        self._give_up = give_up
        self._seconds = seconds
        self._ends: float | None = None
        self._asked = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks the server to end; the loop looks at it at its next tick."""
        if self._asked:
            self.force_exit = self.should_exit = True
        self._asked = True

    def end(self) -> None:
        """Ask the server to end, from any thread."""
        self.handle_exit(signal.SIGTERM, None)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop listening; called every tenth of a second."""
        if self._asked and self._ends is None:
            self._begin_ending()
            self._ends = time.monotonic() + self._seconds
            logger.warning("Ending: %d answers are under way.", self._under_way())
        if self._ends is not None and not self.should_exit:
            if self._under_way() == 0:
                self.should_exit = True
            elif time.monotonic() >= self._ends:
                logger.warning("The time is over: %d answers are given up.", self._under_way())
                self._give_up()
                self.should_exit = True
        return bool(await super().on_tick(counter))


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, not listening yet: that it is free is known before a model is loaded.

    Args:
        host: name or IP address of an interface of this machine.
        port: 0 takes any that is free.

    Raises:
        ValueError: if it cannot be used.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, UnicodeError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--host {host} and --port {port} cannot be used: {reason}; choose others.") from error
    return made


def address_of(made: socket.socket) -> str:
    """The http address of a socket."""
    host, port = made.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _WithoutQueries(logging.Filter):
    """Leaves out of uvicorn's record of requests what follows a path: clients send keys there by mistake."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; keeps all of them."""
        if isinstance(record.args, tuple):
            record.args = tuple(one.partition("?")[0] if isinstance(one, str) else one for one in record.args)
        return True


_WITHOUT_QUERIES = _WithoutQueries()


def make_config(app: Any, log_level: str = "info") -> uvicorn.Config:
    """uvicorn's settings of such a server, which is given a socket."""
    logging.getLogger("uvicorn.access").addFilter(_WITHOUT_QUERIES)  # adding the same one again changes nothing
    return uvicorn.Config(
        app,
        log_config=None,  # all of it goes where the program's own log goes
        log_level=log_level,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_LAST_WRITES,
    )
