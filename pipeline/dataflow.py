"""The Ray Data graph of a job: pending chunks → read tasks → autoscaling actor pool → small result rows.

Pixels never cross the object store: encoded bytes go to the actor, and figures come back.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.actor import ChunkResult
from pipeline.budget import ALLOCATOR, READ_CPUS
from pipeline.cluster import free_resources
from pipeline.counting import CountingStore
from pipeline.errors import RaysightError, UnavailableError
from pipeline.plan import waves
from pipeline.raystats import ForgetBlockStats
from pipeline.read import read_chunks
from pipeline.storage import open_store
from pipeline.worker import Coordinator, ExtractActor, JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pipeline.config import Config
    from pipeline.manifest import Manifest
    from pipeline.plan import Pending
    from pipeline.storage import Store

_CALLS_PER_ACTOR = 2  # one decodes or commits while the other holds the device
_TASKS_PER_ACTOR = 4  # Ray Data grows the pool only when queued calls exceed 1.75 × concurrent ones
_INIT_DEATHS = 10  # actors that may die while loading, in a row, before the job gives up (spot losses)
_CHUNKS_PER_READ_TASK = 16
_CHUNKS_AHEAD = 3 * _TASKS_PER_ACTOR  # for each actor: those it was handed, and two more rounds
_POLL_S = 0.2
_RAYS_ADVICE = "\nFailed to "  # Ray Data appends advice on its own settings to every error message


class ChunkSource(Datasource):  # type: ignore[misc]  # ray ships no types
    """Pending chunks as read tasks. Each yields its chunks one by one, in a fixed order, a row and a block each."""

    def __init__(self, spec: JobSpec, manifest: Manifest, pending: Pending) -> None:
        total = sum(len(chunks) for _, chunks in pending)
        # Few chunks: spread them over all readers. Many: fewer tasks than chunks, for the driver's memory.
        size = max(1, min(_CHUNKS_PER_READ_TASK, total // (8 * spec.budget.read_tasks)))
        self._spec = spec
        self._tasks = [
            (manifest.shards[shard].source, shard, [int(chunk) for chunk in chunks[start : start + size]])
            for shard, chunks in pending
            for start in range(0, len(chunks), size)
        ]

    @property
    def task_count(self) -> int:
        """How many read tasks there will be."""
        return len(self._tasks)

    def get_name(self) -> str:
        return "Chunks"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        del parallelism, data_context
        config = self._spec.config
        return [
            ReadTask(
                functools.partial(read_chunks, config, source, shard, chunks),
                BlockMetadata(num_rows=len(chunks), size_bytes=None, input_files=None, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for source, shard, chunks in self._tasks
        ]


def build_dataset(spec: JobSpec, source: ChunkSource, coordinator: Any) -> ray.data.Dataset:
    """The lazy graph. The stages do not fuse: their resources differ, and a test asserts the plan's operators."""
    budget = spec.budget
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block for each row, and a row is a chunk
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a wait for spot nodes is legitimate; the job reports it
    context.max_consecutive_actor_init_deaths = _INIT_DEATHS
    context.actor_task_retry_on_errors = [UnavailableError]
    context.raise_original_map_exception = True  # Ray's wrapper would keep the text alone
    context.custom_execution_callback_classes = [ForgetBlockStats]
    # Reads run ahead of the actors by a few full chunks, not by all the memory there is: each chunk that waits costs
    # the driver some KiB, and is read again after a kill.
    ahead = budget.max_actors * _CHUNKS_AHEAD * spec.config.job.chunk_bytes
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=ahead)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray.data.DataContext.current(context):
        return ray.data.read_datasource(
            source,
            override_num_blocks=source.task_count,
            num_cpus=READ_CPUS,
            memory=budget.memory_per_read,
            concurrency=min(budget.read_tasks, source.task_count),  # Ray warns of more than there are
        ).map_batches(
            ExtractActor,
            fn_constructor_args=(spec, coordinator),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                min_size=budget.min_actors,
                max_size=budget.max_actors,
                initial_size=budget.min_actors,
                max_tasks_in_flight_per_actor=_TASKS_PER_ACTOR,
                max_concurrent_calls_per_actor=_CALLS_PER_ACTOR,
                enable_true_multi_threading=True,
            ),
            num_cpus=budget.ray_cpus,
            num_gpus=budget.gpus_per_actor or None,
            memory=budget.memory_per_actor,
            runtime_env={} if budget.gpus_per_actor else {"env_vars": dict(ALLOCATOR)},
        )


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
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    coordinator = (
        ray.remote(Coordinator)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote()
    )
    dataset = build_dataset(spec, ChunkSource(spec, manifest, wave), coordinator)
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
                raise _explain(item) from item
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


def _explain(error: BaseException) -> RaysightError:
    """Our own error where one lies below Ray's wrappers, else the last line of what lies at the root."""
    root = error
    while True:
        if isinstance(root, RaysightError) and type(root).__module__ == RaysightError.__module__:
            return type(root)(str(root).partition(_RAYS_ADVICE)[0])
        cause = getattr(root, "cause", None)
        below = cause if isinstance(cause, BaseException) else root.__cause__
        if below is None:
            break
        root = below
    lines = [line for line in str(root).strip().splitlines() if line.strip()]
    return RaysightError(f"Ray gave up: {type(root).__name__}: {lines[-1] if lines else ''}; run again to resume")


def _finish(config: Config, shard: int, task: Callable[[Store], None]) -> tuple[int, dict[str, int]]:
    dest = CountingStore(open_store(config.dest, config.storage))
    task(dest)
    return shard, dest.take()


class RayWorkers:
    """The workers of a run on Ray: a Ray Data graph for chunks, tasks of their own for shards. Adds up ``requests``."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._finish = ray.remote(max_retries=3, retry_exceptions=[UnavailableError])(_finish)
        self._running: list[Any] = []
        self.requests: Counter[str] = Counter()

    def chunks(self, manifest: Manifest, pending: Pending, stop: threading.Event) -> Iterator[ChunkResult | None]:
        """As :func:`run_chunks`."""
        return run_chunks(self._spec, manifest, pending, stop)

    def submit(self, shard: int, task: Callable[[Store], None], cpus: float) -> None:
        """Starts sealing or rewriting a shard."""
        self._running.append(self._finish.options(num_cpus=cpus).remote(self._spec.config, shard, task))

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
            raise _explain(error) from error
        for _, requests in sealed:
            self.requests.update(requests)
        return [shard for shard, _ in sealed]

    def free(self) -> str:
        """What the cluster has free."""
        return free_resources()
