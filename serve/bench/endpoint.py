"""One server under the clock."""

from __future__ import annotations

import json
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import torch

from pipeline.streams import ForwardStreams
from serve.bench import servers
from serve.bench.client import Load, load, write_request
from serve.bench.costs import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager


def measure(
    server: str,
    source: str,
    clients: list[int],
    seconds: float,
    warm_s: float = 3.0,
    kind: str = "slice",
    model: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Starts a server and asks it for features of the files in turn.

    Args:
        server: ``raysight``, ``own`` (its app on uvicorn), ``usual``, ``roomy``, ``plain`` or ``empty``.
        source: folder of JPEG files.
        clients: how many at once; a window for each number, one after the other.
        seconds: of each window.
        warm_s: seconds before each window.
        kind: ``empty``, ``slice`` or ``model``; the peers have the slice.
        model: settings of ``[model]`` other than the defaults.
        settings: settings of ``[serve]`` other than the defaults.

    Returns:
        for each number of clients, as text, the figures of :func:`figures`.
    """
    bodies = [path.read_bytes() for path in islice(sorted(Path(source).iterdir()), 300)]
    with _start(server, kind, model or {}, settings or {}) as (port, path):
        requests = [write_request(path, f"{servers.HOST}:{port}", body) for body in bodies]
        return {str(count): _window((servers.HOST, port), requests, count, seconds, warm_s) for count in clients}


def _window(
    address: tuple[str, int], requests: Sequence[bytes], clients: int, seconds: float, warm_s: float
) -> dict[str, Any]:
    costs: list[dict[str, float]] = []
    answers = load(address, requests, clients, seconds, warm_s, lambda: costs.append(cpu_seconds()))
    return figures(answers, *costs)


def alone(source: str, seconds: float, threads: int, model: dict[str, Any], warm_s: float = 3.0) -> dict[str, Any]:
    """One image after another through the served extractor in this process: no server, no sockets.

    Args:
        source: folder of JPEG files, taken in turn.
        seconds: after ``warm_s`` others.
        threads: of the forward; the image is prepared on one.
        model: settings of ``[model]`` other than the defaults.

    Returns:
        ``rate``: images/s; ``p50`` and ``p95``: ms.
    """
    torch.set_num_threads(1)
    extractor = servers.extractor("model", model)
    forwards = ForwardStreams(extractor, 1, threads)
    bodies = cycle([path.read_bytes() for path in islice(sorted(Path(source).iterdir()), 300)])
    found = Load()
    begin = time.perf_counter() + warm_s
    while (start := time.perf_counter()) < begin + seconds:
        forwards.submit([extractor.prepare(next(bodies)).pixels]).result()
        if start >= begin:
            found.latencies.append(time.perf_counter() - start)
    found.seconds = time.perf_counter() - begin
    return _speed(found)


def figures(answers: Load, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """``answers``, and their ``rate`` a second; ``p50`` and ``p95``: ms; ``cpu``: ms of an answer, by role; ``width``.

    Raises:
        AssertionError: there were refusals, or no answers.
    """
    assert not answers.refused, f"refused, by status: {answers.refused}"
    speed = _speed(answers)
    return {
        **speed,
        "cpu": {role: 1e3 * (after[role] - before[role]) / speed["answers"] for role in after},
        "width": len(vector(answers.answer)),
    }


def _speed(answers: Load) -> dict[str, float]:
    assert answers.latencies, "no answer within the window"
    count = len(answers.latencies)
    percentiles = quantiles(answers.latencies, n=100, method="inclusive") if count > 1 else answers.latencies * 99
    return {
        "answers": count,
        "rate": count / answers.seconds,
        "p50": percentiles[49] * 1e3,
        "p95": percentiles[94] * 1e3,
    }


def vector(body: bytes) -> list[float]:
    """The embedding in an answer, raysight's or a peer's."""
    answer = json.loads(body)
    values: list[float] = (answer["data"][0] if "data" in answer else answer)["embedding"]
    return values


def _start(
    server: str, kind: str, model: dict[str, Any], settings: dict[str, Any]
) -> AbstractContextManager[tuple[int, str]]:
    match server:
        case "raysight":
            return servers.raysight(kind, model, settings)
        case "own":
            return servers.uvicorn("own", "/v1/features", kind=kind, model=model)
        case "plain":
            return servers.uvicorn("plain", "/")
        case "usual" | "roomy" | "empty":
            return servers.ray_serve(f"{server}_application")
    raise ValueError(server)
