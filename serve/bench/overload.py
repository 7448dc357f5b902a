"""Overload: what is still answered when many times more is asked for than the model sustains, at a steady rate."""

from __future__ import annotations

import os
import threading
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_corpus
from pipeline.bench.runner import measure as in_process
from pipeline.bench.table import render, verdict
from serve.bench import servers
from serve.bench.client import Load, load, write_request
from serve.bench.costs import cpu_seconds, replica_mib
from serve.bench.suite import MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.bench.suite import Bench

_SHARE, _RATIO = 0.8, 0.8
_CLIENTS, _PEAK_CLIENTS = 512, 8
"""Connections under overload: more than there are images let in, so that those who wait for an answer do not slow the
others down; and connections that keep the device busy without a refusal."""


def run(bench: Bench) -> dict[str, Any]:
    """The rate that the ingress passes around an empty model, and 0.8 of it thrown at the real one."""
    seconds = 30.0 if bench.full else 10.0
    source = str(write_corpus(bench.work, 300))
    empty = in_process(
        "serve.bench.endpoint:measure",
        {"server": "raysight", "kind": "empty", "source": source, "clients": [32], "seconds": 10.0},
        timeout_s=bench.timeout_s,
    )
    rate = _SHARE * empty["32"]["rate"]
    found = in_process(
        "serve.bench.overload:measure",
        {"source": source, "rate": rate, "seconds": seconds, "model": MODEL},
        timeout_s=bench.timeout_s,
    )
    cores = len(os.sched_getaffinity(0))
    left = 1 - found["overload"]["refused"] * found["refusing"]["cpu"] / 1e3 / cores
    bench.say(f"default model at 224 px, {cores} cores, {rate:.0f} requests/s asked for, {seconds:g} s")
    bench.say(
        render(
            ["window", "200s/s", "refused/s", "p50 of the 200s, ms", "statuses", "CPU ms an answer"],
            [_row(name, found[name]) for name in ("peak", "overload", "refusing")],
        )
    )
    bench.say(
        f"refusing took {1 - left:.1%} of the machine; replica's memory: {found['memory'][0]:.0f} MiB before, at most"
        f" {found['memory'][1]:.0f} in the first third, {found['memory'][2]:.0f} in the last"
    )
    kept = found["overload"]["rate"] / found["peak"]["rate"]
    bench.say(f"200s ÷ peak, the cost of refusing not counted: {kept:.2f}")
    others = set(found["overload"]["statuses"]) - {"200", "429", "503"}
    bench.say(f"statuses other than 200, 429 and 503: {', '.join(sorted(others)) or 'none'}")
    for line in verdict({"200s ÷ what is left of the peak": (kept / left, _RATIO)}):
        bench.say(line)
    return {"empty": empty, "overload": found, "kept": kept, "left": left}


def measure(source: str, rate: float, seconds: float, model: dict[str, Any]) -> dict[str, Any]:
    """Peak, overload, and refusals alone, of one server.

    Args:
        source: folder of JPEG files.
        rate: requests/s under overload.
        seconds: of the window under overload.
        model: settings of ``[model]`` other than the defaults.

    Returns:
        ``peak``, ``overload`` and ``refusing``: each the figures of :func:`figures`; ``memory``: the replica's MiB
        before overload, and at most in its first and last third.
    """
    bodies = [path.read_bytes() for path in islice(sorted(Path(source).iterdir()), 300)]
    with servers.raysight("model", model, {}) as (port, path):
        address = (servers.HOST, port)
        requests = [write_request(path, f"{servers.HOST}:{port}", body) for body in bodies]
        peak = _window(address, requests, _PEAK_CLIENTS, 10.0)
        before = replica_mib()
        with _Sampled() as samples:
            overload = _window(address, requests, _CLIENTS, seconds, _CLIENTS / rate)
        servers.refuse_all()
        refusing = _window(address, requests, _CLIENTS, 10.0, _CLIENTS / rate)
    third = max(1, len(samples) // 3)
    return {
        "peak": peak,
        "overload": overload,
        "refusing": refusing,
        "memory": [before, max(samples[:third]), max(samples[-third:])],
    }


def figures(answers: Load, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """``rate`` and ``refused``: a second; ``p50``: ms, of the 200s; ``statuses``; ``cpu``: ms an answer of any kind."""
    count = len(answers.latencies) + sum(answers.refused.values())
    assert count, "no answer within the window"
    return {
        "rate": len(answers.latencies) / answers.seconds,
        "refused": sum(answers.refused.values()) / answers.seconds,
        "p50": 1e3 * median(answers.latencies) if answers.latencies else None,
        "statuses": {"200": len(answers.latencies), **{str(key): each for key, each in answers.refused.items()}},
        "cpu": 1e3 * sum(after[role] - before[role] for role in after) / count,
    }


def _window(
    address: tuple[str, int], requests: Sequence[bytes], clients: int, seconds: float, period_s: float = 0.0
) -> dict[str, Any]:
    costs: list[dict[str, float]] = []
    answers = load(address, requests, clients, seconds, 5.0, lambda: costs.append(cpu_seconds()), period_s=period_s)
    return figures(answers, *costs)


def _row(name: str, found: dict[str, Any]) -> list[str]:
    statuses = ", ".join(f"{status}: {count:,}" for status, count in found["statuses"].items() if count)
    p50 = f"{found['p50']:.0f}" if found["p50"] is not None else ""
    return [name, f"{found['rate']:.1f}", f"{found['refused']:.0f}", p50, statuses, f"{found['cpu']:.2f}"]


class _Sampled:
    """The replica's memory in MiB, every half second while the block runs."""

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> list[float]:
        self._thread.start()
        return self._samples

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self._samples.append(replica_mib())
            if self._stop.wait(0.5):
                return
