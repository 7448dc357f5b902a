"""The window of requests under way: half as wide after a wish to slow down, wider again with every round of answers."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from pipeline.config import StorageConfig
from pipeline.storage import open_store
from pipeline.store import Fetched
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE = 4  # requests that the server below bears


def test_a_wish_to_slow_down_halves_it() -> None:
    window = Window(64)
    window.throttled(window.begin())
    assert window.limit == 32


def test_what_began_before_a_halving_says_nothing_new() -> None:
    window = Window(64)
    marks = [window.begin() for _ in range(10)]
    for mark in marks:
        window.throttled(mark)
    assert window.limit == 32
    window.throttled(window.begin())
    assert window.limit == 16


def test_a_round_of_answers_widens_it_by_one_up_to_the_most() -> None:
    window = Window(8)
    window.throttled(window.begin())
    for _ in range(5):  # a little more than four, since it widens meanwhile
        window.answered()
    assert window.limit == 5
    for _ in range(100):
        window.answered()
    assert window.limit == 8


def test_it_never_closes() -> None:
    window = Window(4)
    for _ in range(10):
        window.throttled(window.begin())
    assert window.limit == 1
    assert asyncio.run(window.each(lambda key: asyncio.sleep(0, key), range(5))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("halvings", [0, 1, 3])
def test_no_more_is_under_way_than_it_is_wide_and_answers_keep_their_order(halvings: int) -> None:
    window = Window(8)
    for _ in range(halvings):
        window.throttled(window.begin())
    running, most = 0, 0

    async def ask(key: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return -key

    assert asyncio.run(window.each(ask, range(40))) == [-key for key in range(40)]
    assert most == 8 >> halvings


def test_the_first_exception_is_raised() -> None:
    async def ask(key: int) -> int:
        raise LookupError(f"{key}")

    with pytest.raises(LookupError):
        asyncio.run(Window(2).each(ask, range(5)))


class _Throttling(ThreadingHTTPServer):
    """A bucket that answers 503 SlowDown to whoever asks for more than a few objects at once, until it is lifted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.places = AT_ONCE
        self.refused = 0
        self.fail_once: dict[str, int] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for its head to be acknowledged
    server: _Throttling

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.places -= 1
            full = self.server.places < 0
            self.server.refused += full
        threading.Event().wait(0.01)  # so that requests meet
        with self.server.lock:
            fails = self.server.fail_once.pop(self.path, None)
        body = b"<Error><Code>SlowDown</Code></Error>" if full else self.path.encode()
        self.send_response(503 if full else fails or 200)
        for name, value in (("Content-Length", str(len(body))), ("ETag", '"1"')):
            self.send_header(name, value)
        self.send_header("Last-Modified", "Wed, 25 Nov 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)
        with self.server.lock:
            self.server.places += 1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the base class calls it so
        pass


@pytest.fixture
def throttling(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Throttling]:
    with _Throttling() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
        server.shutdown()
        thread.join()


def test_a_store_that_throttles_is_asked_less_and_loses_nothing(throttling: _Throttling) -> None:
    store = open_store("s3://bucket/", StorageConfig(anonymous=True, max_in_flight=32))
    keys = [f"{number}.jpg" for number in range(200)]
    answers = store.fetch_many(keys, 1 << 20)
    assert [answer.data if isinstance(answer, Fetched) else answer for answer in answers] == [
        f"/bucket/{key}".encode() for key in keys
    ]
    assert throttling.refused > 0
    window = store._window
    assert window.limit < 16, "it was halved more than once"
    throttling.places = 1000
    store.fetch_many(keys * 3, 1 << 20)
    assert window.limit > 16, "and opens again"


@pytest.mark.parametrize("status", [429, 503])
def test_either_status_of_a_store_that_has_too_much_to_do_narrows_it(status: int, throttling: _Throttling) -> None:
    throttling.places = 1000
    throttling.fail_once = {"/bucket/a.jpg": status}
    store = open_store("s3://bucket/", StorageConfig(anonymous=True, max_in_flight=32))
    (answer,) = store.fetch_many(["a.jpg"], 1 << 20)
    assert isinstance(answer, Fetched)
    assert store._window.limit == 16


def test_an_error_of_another_kind_narrows_nothing_whatever_the_key_is_called(throttling: _Throttling) -> None:
    throttling.places = 1000
    throttling.fail_once = dict.fromkeys(("/bucket/c503.jpg", "/bucket/SlowDown-429.jpg"), 500)
    store = open_store("s3://bucket/", StorageConfig(anonymous=True, max_in_flight=32))
    keys = ["c503.jpg", "SlowDown-429.jpg"]

    answers = store.fetch_many(keys, 1 << 20)

    assert [isinstance(answer, Fetched) for answer in answers] == [True, True]
    assert not throttling.fail_once, "both failed once"
    assert store._window.limit == 32
