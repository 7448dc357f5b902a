"""What tests of a deployed Ray share: free ports, requests, waiting, and what a Prometheus port showed."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


class Scraper:
    """Asks a Prometheus port twice a second, as long as the block runs, and keeps what it ever saw."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kinds: dict[str, str] = {}
        """Name of a family, as it is exported → counter, gauge or histogram."""
        self.last: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        """(Name, labels) → the last value of each sample."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            for family in text_string_to_metric_families(fetch(self._url, {"RAY_AUTH_TOKEN": ""})[1].decode()):
                self.kinds[family.name] = family.type
                for sample in family.samples:
                    self.last[sample.name, frozenset(sample.labels.items())] = sample.value

    def kinds_of(self, prefix: str) -> dict[str, str]:
        """Name, with the ``_total`` of counters, → kind of the families whose name begins so."""
        return {
            name + ("_total" if kind == "counter" else ""): kind
            for name, kind in self.kinds.copy().items()
            if name.startswith(prefix)
        }

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        return sum(
            value
            for (found, own), value in self.last.copy().items()
            if found == name and labels.items() <= dict(own).items()
        )

    @property
    def names(self) -> set[str]:
        """Of all samples, as a query names them."""
        return {name for name, _ in self.last.copy()}


def fetch(url: str, environment: Mapping[str, str], data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body; 0 when nobody answers."""
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(url, data, {**token, **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def until(condition: Callable[[], bool], what: str, found: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}; but {found()}"
        time.sleep(0.2)
