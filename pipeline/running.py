"""A run over Ray Data, as the driver sees it: waves of chunks, results as they come, and an end before the end."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.chunk_result import ChunkResult
from pipeline.dataflow import ChunkSource, build_dataset
from pipeline.plan import waves
from pipeline.rayerrors import explain, leave_ours_to_us
from pipeline.worker import Coordinator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.manifest import Manifest
    from pipeline.plan import Pending
    from pipeline.worker import JobSpec

_POLL_S = 0.2


def run_chunks(
    spec: JobSpec, manifest: Manifest, pending: Pending, stop: threading.Event
) -> Iterator[ChunkResult | None]:
    """Runs pending chunks and yields the result of each; None now and then, so that the caller can look at the clock.

    They go through Ray Data in waves: it keeps some memory for every chunk of an execution until the execution ends.

    Once ``stop`` is set no chunk is begun; those in flight have ``grace_s`` seconds to commit.

    Raises:
        RaysightError: the job cannot go on. What is committed stays.
    """
    for wave in waves(pending, spec.config.job.wave_chunks * spec.budget.max_actors):
        yield from _run_wave(spec, manifest, wave, stop)
        if stop.is_set():
            return


def _run_wave(spec: JobSpec, manifest: Manifest, wave: Pending, stop: threading.Event) -> Iterator[ChunkResult | None]:
    leave_ours_to_us()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    coordinator = (
        ray.remote(Coordinator)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote()
    )
    dataset = build_dataset(spec, ChunkSource(spec, manifest, wave, coordinator), coordinator)
    results: queue.SimpleQueue[ChunkResult | Exception | None] = queue.SimpleQueue()
    threading.Thread(target=_consume, args=(dataset, results), name="raysight-results", daemon=True).start()
    deadline: float | None = None
    seen = 0
    while True:
        try:
            item = results.get(timeout=_POLL_S)
        except queue.Empty:
            if deadline is not None and (time.monotonic() > deadline or ray.get(coordinator.drained.remote(seen))):
                return
            yield None
        else:
            if item is None:
                return
            if isinstance(item, Exception):
                raise explain(item) from item
            seen += 1
            yield item
        if stop.is_set() and deadline is None:
            deadline = time.monotonic() + spec.config.job.grace_s
            ray.get(coordinator.stop.remote())


def _consume(dataset: ray.data.Dataset, results: queue.SimpleQueue[ChunkResult | Exception | None]) -> None:
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                results.put(ChunkResult.from_row(row))
    except Exception as error:
        results.put(error)
    else:
        results.put(None)
