"""The figures of a running job, as Prometheus sees them: their names and units, and how a chunk adds to them.

Names and units are documented in docs/metrics.md, which a test holds to this table. Knows no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.runlog import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.chunk_result import ChunkResult
    from pipeline.manifest import Manifest
    from pipeline.plan import Pending


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure.

    Attributes:
        name: without what exporters add: ``ray_`` before it, ``_total`` behind a counter.
        kind: as Prometheus means it.
        unit: of a value.
        text: what it is.
        labels: what it is told apart by.
        buckets: upper ends, of a histogram.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class Recorder(Protocol):
    """Where figures go. Values of labels come in the order of ``Metric.labels``."""

    def add(self, name: str, value: float, *labels: str) -> None:
        """To a counter; not below 0."""

    def set(self, name: str, value: float, *labels: str) -> None:
        """Of a gauge."""

    def observe(self, name: str, value: float, *labels: str) -> None:
        """By a histogram."""


JOB_METRICS = (
    Metric("raysight_job_images", "counter", "images", "done, by outcome: ok, or the reject's error", ("outcome",)),
    Metric("raysight_job_read_bytes", "counter", "bytes", "encoded images that reached a worker"),
    Metric("raysight_job_written_bytes", "counter", "bytes", "committed chunks"),
    Metric("raysight_job_store_requests", "counter", "requests", "of reads, commits and seals", ("operation",)),
    Metric("raysight_job_stage_seconds", "counter", "seconds", "wall time of the threads at it", ("stage",)),
    Metric("raysight_job_stage_cpu_seconds", "counter", "seconds", "CPU time of the threads at it", ("stage",)),
    Metric("raysight_job_actor_seconds", "counter", "seconds", "from an actor's first chunk to its last, all actors"),
    Metric("raysight_job_chunks", "counter", "chunks", "committed"),
    Metric("raysight_job_chunk_attempts", "counter", "attempts", "at these chunks; more than one where a worker died"),
    Metric("raysight_job_shards_written", "counter", "shards", "sealed, or rewritten without the rows that leave"),
    Metric("raysight_job_chunks_pending", "gauge", "chunks", "not committed yet, those in flight among them"),
    Metric("raysight_job_shards_in_flight", "gauge", "shards", "being sealed or rewritten"),
    Metric("raysight_job_rows_pending", "gauge", "images", "not committed yet"),
    Metric("raysight_job_rows", "gauge", "images", "live rows of the manifest"),
)
"""All have the labels ``run`` and ``dataset`` too, see :func:`pipeline.runlog.labels`."""


class JobMetrics:
    """Turns what the driver learns into figures."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._spans: dict[str, tuple[float, float]] = {}
        self._rows = self._chunks = self._shards = 0

    def expect(self, manifest: Manifest, pending: Pending) -> None:
        """These chunks are to do."""
        self._chunks = sum(len(chunks) for _, chunks in pending)
        self._rows = sum(manifest.shards[shard].chunks[chunk] for shard, chunks in pending for chunk in chunks)
        self._recorder.set("raysight_job_rows", manifest.rows)
        self._show()

    def add(self, result: ChunkResult) -> None:
        """A committed chunk."""
        recorder, rejects = self._recorder, result.rejects
        for outcome, images in {"ok": result.rows - sum(rejects.values()), **rejects}.items():
            recorder.add("raysight_job_images", images, outcome)
        recorder.add("raysight_job_read_bytes", result.bytes_read)
        recorder.add("raysight_job_written_bytes", result.bytes_written)
        for stage in STAGES:
            recorder.add("raysight_job_stage_seconds", getattr(result, f"{stage}_seconds"), stage)
            recorder.add("raysight_job_stage_cpu_seconds", getattr(result, f"{stage}_cpu_seconds"), stage)
        recorder.add("raysight_job_actor_seconds", self._longer(result))
        recorder.add("raysight_job_chunks", 1)
        recorder.add("raysight_job_chunk_attempts", result.attempt)
        self.count(result.requests)
        self._chunks -= 1
        self._rows -= result.rows
        self._show()

    def count(self, requests: Mapping[str, int]) -> None:
        """Requests to the stores."""
        for operation, number in requests.items():
            self._recorder.add("raysight_job_store_requests", number, operation)

    def shards(self, *, written: int, in_flight: int) -> None:
        """Shards whose task has ended, and those whose task has not."""
        self._recorder.add("raysight_job_shards_written", written)
        self._recorder.set("raysight_job_shards_in_flight", in_flight)

    def _longer(self, result: ChunkResult) -> float:
        """By how many seconds this chunk makes the time of its actor longer."""
        first, last = self._spans.get(result.worker, (result.ended, result.ended))
        span = min(first, result.started), max(last, result.ended)
        self._spans[result.worker] = span
        return (span[1] - span[0]) - (last - first)

    def _show(self) -> None:
        self._recorder.set("raysight_job_chunks_pending", max(0, self._chunks))
        self._recorder.set("raysight_job_rows_pending", max(0, self._rows))
