"""What the measurement of the endpoint stands on: peers that compute the same, a client that counts, CPU by process."""

from __future__ import annotations

import asyncio
import importlib
import io
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import timm
from fastapi.testclient import TestClient
from PIL import Image
from starlette.requests import Request
from timm.data import create_transform, resolve_data_config

from pipeline.bench.corpus import photographs, write_corpus
from pipeline.config import DEFAULT_MODEL
from serve.bench import overload, peers, servers
from serve.bench.client import Load, load, write_request
from serve.bench.costs import cpu_seconds
from serve.bench.endpoint import alone, vector
from serve.cli import BENCH_SUITES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.bench.suite import Suite

    Address = tuple[str, int]


@pytest.fixture(scope="module")
def photograph() -> bytes:
    return next(photographs(1))


@pytest.fixture(scope="module")
def expected(photograph: bytes) -> NDArray[np.float32]:
    """The slice by timm's own transform of the default model: the red channel of the first row."""
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(DEFAULT_MODEL).to_dict())
    pixels = create_transform(**config)(Image.open(io.BytesIO(photograph)).convert("RGB"))
    row: NDArray[np.float32] = pixels[0, 0, :384].numpy()
    return row


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:Using extra keyword")

# ---- servers


def test_plain_fastapi_answers_with_timms_numbers(photograph: bytes, expected: NDArray[np.float32]) -> None:
    with TestClient(peers.plain_app()) as client:
        answer = client.post("/", content=photograph)
    np.testing.assert_array_equal(np.float32(vector(answer.content)), expected)


def test_the_usual_app_answers_with_timms_numbers(
    photograph: bytes, expected: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No replica around it: the batch queue wants to know how many requests that lets in.
    context = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=5))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    usual = peers.usual_application()._bound_deployment.func_or_class
    answer = asyncio.run(usual.answer(_as_written(usual)(), _request(photograph)))
    np.testing.assert_array_equal(np.float32(answer["embedding"]), expected)


def test_the_empty_app_answers_with_as_many_numbers_whatever_it_is_sent(expected: NDArray[np.float32]) -> None:
    empty = peers.empty_application()._bound_deployment.func_or_class
    answers = [asyncio.run(empty.answer(None, _request(body))) for body in (b"", b"no image")]
    assert answers[0] == answers[1]
    assert len(answers[0]["embedding"]) == len(expected)


def test_raysights_app_answers_with_timms_numbers(photograph: bytes, expected: NDArray[np.float32]) -> None:
    with TestClient(servers.own_app("slice", {}), base_url="http://localhost") as client:
        answer = client.post("/v1/features", content=photograph, headers={"Content-Type": "image/jpeg"})
    level = 1 / 255 / 0.229  # of the red channel, normalised: the fast resize may round to the next one
    np.testing.assert_allclose(np.float32(vector(answer.content)), expected, atol=1.01 * level)


def test_a_replica_around_the_slice_is_healthy() -> None:
    servers.extractor("slice", {}).check()  # Serve asks before it lets a request in


def test_without_a_server_images_go_through_one_after_another(tmp_path: Path) -> None:
    model = {"name": "test_vit", "weights": "random:0", "precision": "fp32"}
    found = alone(str(write_corpus(tmp_path, 4)), seconds=0.5, threads=1, model=model, warm_s=0.0)
    assert found["answers"] >= 1
    assert found["rate"] * found["p50"] / 1e3 <= 2, "more at a time than one"


def _as_written(deployment: type) -> type:
    """The class as its author wrote it, without the server that Ray puts around it."""
    return deployment.__mro__[1]


def _request(body: bytes) -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


@pytest.mark.parametrize("suite", BENCH_SUITES, ids=lambda suite: suite.name)
def test_every_suite_is_where_it_says(suite: Suite) -> None:
    module, _, function = suite.where.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


# ---- client


@contextmanager
def answering(answers: tuple[bytes, ...]) -> Iterator[tuple[Address, Counter[str]]]:
    """A server that gives the answers in turn on each connection, then hangs up; what it counted."""
    counts: Counter[str] = Counter()
    address: Future[Address] = Future()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counts["connections"] += 1
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            for text in answers:
                await reader.readuntil(b"\r\n\r\nBODY")
                counts["requests"] += 1
                writer.write(text)
                await asyncio.sleep(0.01)

    async def serve() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            address.set_result(server.sockets[0].getsockname())
            await stop.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
                await asyncio.wait([task])

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield address.result(30), counts
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
FULL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
REQUEST = write_request("/", "localhost", b"BODY")


def test_each_client_has_a_connection_and_asks_again_once_answered() -> None:
    with answering((GOOD,) * 10_000) as (address, counts):
        found = load(address, [REQUEST], clients=3, seconds=0.5, warm_s=0.0)
        assert counts["connections"] == 3
        assert 3 < len(found.latencies) <= counts["requests"]
    assert found.answer == b"{}"
    assert max(found.latencies) <= found.seconds


def test_answers_before_the_window_do_not_count() -> None:
    with answering((FULL,) + (GOOD,) * 10_000) as (address, counts):
        found = load(address, [REQUEST], clients=1, seconds=0.2, warm_s=0.3)
        assert len(found.latencies) < counts["requests"]
    assert found.refused == {}, "the first answer fell before it"


def test_refusals_are_kept_apart_by_their_status() -> None:
    with answering((FULL, GOOD, GOOD) * 5_000) as (address, _):
        found = load(address, [REQUEST], clients=1, seconds=0.5, warm_s=0.0)
    assert set(found.refused) == {429}
    assert abs(len(found.latencies) - 2 * found.refused[429]) <= 2


def test_a_server_that_hangs_up_ends_the_measurement() -> None:
    with answering((GOOD,)) as (address, _), pytest.raises(ConnectionError, match="closed a connection"):
        load(address, [REQUEST], clients=1, seconds=30.0, warm_s=0.0)


def test_clients_ask_no_more_often_than_they_are_told() -> None:
    with answering((FULL,) * 10_000) as (address, counts):
        start = time.monotonic()
        found = load(address, [REQUEST], clients=5, seconds=1.0, warm_s=0.0, period_s=0.25)
        elapsed = time.monotonic() - start
        assert 1 <= sum(found.refused.values()) <= counts["requests"] <= 5 * (1 + elapsed / 0.25)


def test_under_overload_refusals_count_beside_answers() -> None:
    answers = Load(seconds=2.0, latencies=[0.1, 0.2, 0.3, 0.4], refused={429: 6, 503: 2})
    found = overload.figures(answers, {"proxy": 1.0, "replica": 1.0}, {"proxy": 1.6, "replica": 1.6})
    assert (found["rate"], found["refused"], found["statuses"]) == (2.0, 4.0, {"200": 4, "429": 6, "503": 2})
    assert found["p50"] == pytest.approx(250)
    assert found["cpu"] == pytest.approx(100)  # 1.2 s for twelve answers


# ---- costs


def test_the_cpu_of_a_child_is_counted_by_what_it_is_for() -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    before = cpu_seconds()
    command = [sys.executable, "-c", burn, "serve.bench.servers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "done\n"
        after = cpu_seconds()
        child.communicate("\n")
    assert 0.4 < after["replica"] - before["replica"] < 2
    assert after["proxy"] == before["proxy"]
