"""A client that costs next to nothing: on a small machine it shares the cores with what it measures.

One thread, a socket for each client, requests that were written out beforehand; each client asks again as soon as it
has its answer. Some 0.1 ms of CPU a request, the same for every server.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import httptools
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

OK = 200


@dataclass
class Load:
    """What came back within the window.

    Attributes:
        seconds: of the window.
        latencies: seconds from request to whole answer, of each answer.
        refused: answers other than 200, by status.
        answer: the last body.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: dict[int, int] = field(default_factory=dict)
    answer: bytes = b""


def write_request(path: str, host: str, body: bytes, kind: str = "image/jpeg") -> bytes:
    """A whole HTTP/1.1 request that keeps its connection."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def load(
    address: tuple[str, int],
    requests: Sequence[bytes],
    clients: int,
    seconds: float,
    warm_s: float,
    at: Callable[[], None] = lambda: None,
    period_s: float = 0.0,
) -> Load:
    """Asks with so many clients at once, each one request at a time.

    Args:
        address: host and port.
        requests: sent in turn, over and over.
        clients: connections.
        seconds: length of the window in which answers count.
        warm_s: seconds before it.
        at: called as the window begins, and as it ends.
        period_s: seconds from one request of a client to its next, at least; clients begin spread over it.

    Raises:
        ConnectionError: the server is not there, or went away before it answered.
    """
    return uvloop.run(_load(address, itertools.cycle(requests), clients, seconds, warm_s, at, period_s))


async def _load(
    address: tuple[str, int],
    requests: Iterator[bytes],
    clients: int,
    seconds: float,
    warm_s: float,
    at: Callable[[], None],
    period_s: float,
) -> Load:
    loop = asyncio.get_running_loop()
    found = Load()
    lost: asyncio.Future[None] = loop.create_future()

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not lost.done():
            lost.set_exception(context.get("exception") or RuntimeError(context["message"]))

    loop.set_exception_handler(fail)
    begin = loop.time()
    running = [
        _Client(requests, found, lost, period_s, begin + period_s * number / clients) for number in range(clients)
    ]
    for client in running:
        await loop.create_connection(lambda client=client: client, *address)  # type: ignore[misc]
    try:
        await _wait(lost, warm_s)
        for client in running:
            client.counts = True
        start = time.perf_counter()
        at()
        await _wait(lost, seconds)
        at()
        found.seconds = time.perf_counter() - start
    finally:
        for client in running:
            client.stop()
    return found


async def _wait(lost: asyncio.Future[None], seconds: float) -> None:
    await asyncio.wait([lost], timeout=seconds)
    if lost.done():
        lost.result()


class _Client(asyncio.Protocol):
    """One connection; opened anew when the server ends it between two requests."""

    def __init__(
        self, requests: Iterator[bytes], found: Load, lost: asyncio.Future[None], period_s: float, due: float
    ) -> None:
        self.counts = False
        self._period_s = period_s
        self._due = due
        self._requests = requests
        self._found = found
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass
        asyncio.get_running_loop().call_at(self._due, self._ask)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._stopped and not self._lost.done():
            self._lost.set_exception(ConnectionError(f"the server closed a connection: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self.counts:
            status = self._parser.get_status_code()
            if status == OK:
                self._found.latencies.append(time.perf_counter() - self._start)
                self._found.answer = b"".join(self._parts)
            else:
                self._found.refused[status] = self._found.refused.get(status, 0) + 1
        self._due += self._period_s
        asyncio.get_running_loop().call_at(self._due, self._ask)  # at once where that is past

    def _ask(self) -> None:
        if self._stopped or self._transport is None:
            return
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._start = time.perf_counter()
        self._transport.write(next(self._requests))
