"""The figures of a run, kept beside the data as ``_raysight/run-*.json``."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pipeline import __version__
from pipeline.redact import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.budget import Budget
    from pipeline.chunk_result import ChunkResult
    from pipeline.fingerprint import Fingerprint
    from pipeline.manifest import Manifest

Outcome = Literal["complete", "interrupted", "failed"]

RUNS = "_raysight/run-"
"""How the names of all logs begin."""

STAGES = ("read", "prepare", "forward", "commit")

_SUMS = (
    "rows",
    "bytes_read",
    "bytes_written",
    "read_seconds",
    "read_cpu_seconds",
    "prepare_seconds",
    "prepare_cpu_seconds",
    "forward_seconds",
    "forward_cpu_seconds",
    "commit_seconds",
    "commit_cpu_seconds",
    "chunk_seconds",
)


_BUDGET = (
    "max_actors",
    "cpus_per_actor",
    "gpus_per_actor",
    "decode_threads",
    "forward_streams",
    "read_tasks_per_actor",
    "cpus_per_read",
    "batch_size",
    "chunk_rows",
    "memory_per_actor",
    "memory_per_read",
    "memory_per_seal",
)


def new_name() -> str:
    """Of a run that begins now in this process."""
    return f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{os.getpid()}"


def labels(run: str, dest: str) -> dict[str, str]:
    """What figures and log lines of a run are told apart by."""
    return {"run": run, "dataset": dest.rstrip("/")}


class RunLog:
    """Adds up the results of chunks.

    Attributes:
        name: of the run: of the log's object, and wherever else the run is named.
        budget: what Ray was asked for, once it was.
    """

    def __init__(self, fingerprint: Fingerprint, name: str | None = None) -> None:
        self._started = datetime.now(UTC)
        self.name = name or new_name()
        self._clock = time.monotonic()
        self._fingerprint = fingerprint
        self._sums: dict[str, float] = dict.fromkeys(_SUMS, 0)
        self._rejects: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._spans: dict[str, tuple[float, float]] = {}
        self._batch_sizes: dict[str, int] = {}
        self._batches_left: dict[str, int] = {}
        self.budget: Budget | None = None
        self._chunks = self._retries = 0

    def add(self, result: ChunkResult) -> None:
        """Notes a committed chunk."""
        for name in _SUMS:
            self._sums[name] += getattr(result, name)
        self._rejects.update(result.rejects)
        self.count(result.requests)
        first, last = self._spans.get(result.worker, (result.started, result.ended))
        self._spans[result.worker] = min(first, result.started), max(last, result.ended)
        self._batch_sizes[result.worker] = result.batch_size
        self._batches_left[result.worker] = min(result.batch_left, self._batches_left.get(result.worker, sys.maxsize))
        self._chunks += 1
        self._retries += result.attempt - 1

    def count(self, requests: Mapping[str, int]) -> None:
        """Notes requests to the stores that no chunk made."""
        self._requests.update(requests)

    def to_object(
        self,
        manifest: Manifest | None,
        images_per_second: float,
        *,
        skipped: int,
        outcome: Outcome,
        error: BaseException | None = None,
    ) -> tuple[str, bytes]:
        """The object's name and content.

        Args:
            manifest: None where the run ended before there was one.
            images_per_second: of this run, once warm.
            skipped: images that were done before.
            outcome: how it ended.
            error: what it ended with; its message is kept without secrets.
        """
        values: dict[str, Any] = {
            "raysight": __version__,
            "host": platform.node(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 3),
            "outcome": outcome,
            "error": {"class": type(error).__name__, "message": redact(str(error))} if error else None,
            "sources": manifest.sources if manifest else [],
            "fingerprint": self._fingerprint.digest,
            "images": manifest.rows if manifest else 0,
            "skipped": skipped,
            "chunks": self._chunks,
            "retries": self._retries,
            "rejects": dict(self._rejects),
            "images_per_second": round(images_per_second, 3),
            "actors": len(self._spans),
            # From an actor's first chunk to the end of its last: what its busy seconds are fractions of.
            "actor_seconds": round(sum(last - first for first, last in self._spans.values()), 3),
            "batch_sizes": dict(sorted(Counter(self._batch_sizes.values()).items())),
            "batch_sizes_left": dict(sorted(Counter(self._batches_left.values()).items())),
            "budget": {name: getattr(self.budget, name) for name in _BUDGET} if self.budget else None,
            "requests": dict(self._requests),
            **{name: round(value, 6) for name, value in self._sums.items()},
        }
        return f"{RUNS}{self.name}.json", json.dumps(values, indent=1).encode()
