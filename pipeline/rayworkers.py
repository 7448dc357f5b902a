"""The workers of a run, on Ray."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import ray

from pipeline.cluster import free_resources
from pipeline.errors import UnavailableError
from pipeline.finishing import finish_shard
from pipeline.metrics import JOB_METRICS, JobMetrics
from pipeline.rayerrors import explain
from pipeline.raymetrics import RayRecorder
from pipeline.running import run_chunks

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator

    from pipeline.chunk_result import ChunkResult
    from pipeline.manifest import Manifest
    from pipeline.plan import Pending
    from pipeline.storage import Store
    from pipeline.worker import JobSpec


class RayWorkers:
    """The workers of a run on Ray: a Ray Data graph for chunks, tasks of their own for shards. Adds up ``requests``."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._metrics = JobMetrics(RayRecorder(JOB_METRICS, spec.labels))
        self._finish = ray.remote(max_retries=3, retry_exceptions=[UnavailableError])(finish_shard)
        self._running: list[Any] = []
        self.requests: Counter[str] = Counter()

    def chunks(self, manifest: Manifest, pending: Pending, stop: threading.Event) -> Iterator[ChunkResult | None]:
        """As :func:`pipeline.running.run_chunks`."""
        self._metrics.expect(manifest, pending)
        for result in run_chunks(self._spec, manifest, pending, stop):
            if result is not None:
                self._metrics.add(result)
            yield result

    def submit(self, shard: int, task: Callable[[Store], None], cpus: float) -> None:
        """Starts sealing or rewriting a shard."""
        finish = self._finish.options(num_cpus=cpus, memory=self._spec.budget.memory_per_seal)
        self._running.append(finish.remote(self._spec.config, self._spec.labels, shard, task))
        self._metrics.shards(written=0, in_flight=len(self._running))

    def done(self, *, wait: bool = False) -> Iterable[int]:
        """The shards finished since the last call; with ``wait``, all that was submitted.

        Raises:
            RaysightError: a shard could not be finished.
        """
        if not self._running:
            return []
        ready, self._running = ray.wait(
            self._running, num_returns=len(self._running), timeout=None if wait else 0, fetch_local=True
        )
        try:
            sealed: list[tuple[int, dict[str, int]]] = ray.get(ready)
        except Exception as error:
            raise explain(error) from error
        for _, requests in sealed:
            self.requests.update(requests)
            self._metrics.count(requests)
        self._metrics.shards(written=len(sealed), in_flight=len(self._running))
        return [shard for shard, _ in sealed]

    def free(self) -> str:
        """What the cluster has free."""
        return free_resources()
