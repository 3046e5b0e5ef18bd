"""Network connections with one deadline for all operations, whose addresses are checked before connecting."""

from __future__ import annotations

import http.client
import ipaddress
import queue
import socket
import ssl
import time
from threading import Thread
from typing import Any

_LONGEST_WAIT = 1e6  # seconds; sockets take no more than an integer of C
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_V6_UNICAST = ipaddress.ip_network("2000::/3")
# Of IANA's registries of special addresses, what Python's tables call global or know only in newer releases: protocol
# assignments and anycast relays for IPv4; Teredo, benchmarks, ORCHID and other assignments, and documentation for IPv6.
_SPECIAL_V4 = [ipaddress.ip_network(net) for net in ("192.0.0.0/24", "192.88.99.0/24")]
_SPECIAL_V6 = [ipaddress.ip_network(net) for net in ("2001::/23", "2001:db8::/32", "3ffe::/16", "3fff::/20")]
_ISATAP = (0x00005EFE, 0x02005EFE)  # in front of the IPv4 address, the last 32 bits

Place = tuple[int, tuple[Any, ...]]
"""Family and socket address."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large: not to this machine, its network or a reserved range.

    IPv4 addresses inside IPv6 ones (mapped, NAT64, 6to4) count as themselves. Addresses of tunnels (Teredo, ISATAP) are
    not public: where they end is for their relay to say.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        special = any(ip in net for net in _SPECIAL_V4)
        return ip.is_global and not (special or ip.is_multicast or ip.is_reserved)
    inner = ip.ipv4_mapped or ip.sixtofour
    if ip in _NAT64:
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if (int(ip) >> 32) & 0xFFFFFFFF in _ISATAP or any(ip in net for net in _SPECIAL_V6):
        return False
    return is_public(str(inner)) if inner is not None else ip in _V6_UNICAST and ip.is_global


class Route:
    """Deadline of one request, and the addresses that its host names resolve to."""

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self._known: dict[str, list[Place]] = {}

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            TimeoutError: if there are none.
        """
        seconds = self.ends - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the time is over")
        return min(seconds, _LONGEST_WAIT)

    def addresses(self, host: str) -> list[Place]:
        """Families and socket addresses of a host, looked up once."""
        if host not in self._known:
            self._known[host] = _looked_up(host, self.left())
        return self._known[host]

    def connect(self, place: tuple[str, int], *_: Any) -> socket.socket:
        """A connection to a host and port; stands for `socket.create_connection`."""
        host, port = place
        places = self.addresses(host.strip("[]"))
        for number, (family, found) in enumerate(places):
            connection = _TimedSocket(family, socket.SOCK_STREAM)
            connection.route = self
            try:
                connection.settimeout(self.left() / (len(places) - number))
                connection.connect((found[0], port, *found[2:]))
                return connection
            except BaseException as error:
                connection.close()
                if not isinstance(error, OSError) or number == len(places) - 1:
                    raise
        raise OSError("the host has no address")


def _looked_up(host: str, seconds: float) -> list[Place]:
    """Addresses of a host. The system's own look-up knows no deadline, so it runs beside and is left behind."""
    answers: queue.SimpleQueue[list[Place] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answers.put([(family, place) for family, _, _, _, place in found])
        except (OSError, ValueError) as error:
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("the name was not found in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


class _TimedSocket(socket.socket):
    """A socket each of whose operations may take what is left of the request's time."""

    route: Route

    def recv_into(self, *args: Any) -> int:
        self.settimeout(self.route.left())
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:
        self.settimeout(self.route.left())
        return super().send(*args)

    def sendall(self, *args: Any) -> None:
        self.settimeout(self.route.left())
        super().sendall(*args)


class TimedTls(_TimedSocket, ssl.SSLSocket):
    """The same over TLS, the handshake included; a subclass names the route."""

    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(self.route.left())
        super().do_handshake(block)


class PlainConnection(http.client.HTTPConnection):
    """HTTP over the connections of a route."""

    def __init__(self, host: str, *, route: Route, **options: Any) -> None:
        super().__init__(host, **options)
        self._create_connection = route.connect


class TlsConnection(http.client.HTTPSConnection):
    """HTTPS over the connections of a route."""

    def __init__(self, host: str, *, route: Route, **options: Any) -> None:
        super().__init__(host, **options)
        self._create_connection = route.connect
