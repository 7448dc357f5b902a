"""The Ray Data graph of a job: pending chunks → read tasks → autoscaling actor pool → small result rows.

Together with ``pipeline.cluster`` the only module that imports ray. Pixels never cross the object store: encoded
bytes go to the actor, and figures come back.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.actor import ChunkResult, ChunkWorker, WorkerConfig
from pipeline.budget import READ_CPUS
from pipeline.errors import RaysightError, UnavailableError, UsageError
from pipeline.raystats import ForgetBlockStats
from pipeline.read import read_chunks
from pipeline.seal import seal_shard
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.budget import Budget
    from pipeline.config import Config
    from pipeline.extractor import Extractor
    from pipeline.fingerprint import Fingerprint

    ExtractorFactory = Callable[[], Extractor]
    Pending = Sequence[tuple[int, NDArray[np.intp]]]

_CALLS_PER_ACTOR = 2  # one decodes or commits while the other holds the device
_TASKS_PER_ACTOR = 4  # Ray Data grows the pool only when queued calls exceed 1.75 × concurrent ones
_INIT_DEATHS = 10  # actors that may die while loading, in a row, before the job gives up (spot losses)
_CHUNKS_PER_READ_TASK = 16
_DEVICE_ERROR_EXIT = 70  # EX_SOFTWARE of sysexits.h
_COORDINATOR_S = 30.0  # seconds a worker waits for the coordinator before it goes on without
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a worker needs to know. Names and numbers only: constructor arguments that live in Ray's object store
    would be lost with it, and an actor could not restart.

    Attributes:
        config: the run.
        budget: what Ray was asked for.
        fingerprint: that the extractor of every actor must have.
        factory: makes the extractor.
    """

    config: Config
    budget: Budget
    fingerprint: Fingerprint
    factory: ExtractorFactory


class ChunkSource(Datasource):  # type: ignore[misc]  # ray ships no types
    """Pending chunks as read tasks. Each yields its chunks one by one, in a fixed order, a row and a block each."""

    def __init__(self, spec: JobSpec, pending: Pending) -> None:
        total = sum(len(chunks) for _, chunks in pending)
        # Few chunks: spread them over all readers. Many: fewer tasks than chunks, for the driver's memory.
        size = max(1, min(_CHUNKS_PER_READ_TASK, total // (8 * spec.budget.read_tasks)))
        self._spec = spec
        self._tasks = [
            (shard, [int(chunk) for chunk in chunks[start : start + size]])
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
                functools.partial(read_chunks, config, shard, chunks),
                BlockMetadata(num_rows=len(chunks), size_bytes=None, input_files=None, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for shard, chunks in self._tasks
        ]


class Coordinator:
    """Knows which chunks are in flight, how often each was begun, and whether the job is stopping."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[int, int], int] = {}
        self._ended = 0
        self._stopping = False

    def begin(self, shard: int, chunk: int) -> tuple[int, bool]:
        """The number of this attempt, from 1, and whether to leave the chunk alone because the job stops."""
        if self._stopping:
            return 0, True
        self._attempts[shard, chunk] = self._attempts.get((shard, chunk), 0) + 1
        return self._attempts[shard, chunk], False

    def end(self, shard: int, chunk: int) -> None:
        """The chunk is committed."""
        self._attempts.pop((shard, chunk), None)
        self._ended += 1

    def stop(self) -> None:
        """No chunk is begun from now on."""
        self._stopping = True

    def drained(self, seen: int) -> bool:
        """Whether no chunk is in flight any more and the driver has seen the result of each that was."""
        return not self._attempts and seen >= self._ended


class ExtractActor:
    """The class that Ray Data makes actors of: a thin shell around :class:`pipeline.actor.ChunkWorker`."""

    def __init__(self, spec: JobSpec, coordinator: Any) -> None:
        budget, config = spec.budget, spec.config
        import torch  # not at the top: read and seal workers have no use for it

        self._device_error: type[BaseException] = torch.AcceleratorError
        torch.set_num_threads(budget.threads)  # Ray sets OMP_NUM_THREADS from the CPUs it was asked for
        extractor = spec.factory()
        if differences := spec.fingerprint.differences(extractor.fingerprint):
            raise UsageError(f"this worker's extractor is not the job's: {'; '.join(differences)}")
        self._grace = config.job.grace_s
        self._attempts = 1 + config.job.task_retries
        self._coordinator = coordinator
        self._worker = ChunkWorker(
            extractor,
            open_store(config.dest, config.storage),
            WorkerConfig(
                batch_size=budget.batch_size,
                decode_threads=budget.decode_threads,
                decode_timeout_s=config.job.decode_timeout_s,
                poison_attempts=config.job.poison_attempts,
            ),
        )

    def __call__(self, row: pa.Table) -> pa.Table:
        shard, chunk = row["shard"][0].as_py(), row["chunk"][0].as_py()
        attempt, stopping = self._ask(self._coordinator.begin, shard, chunk, otherwise=(1, False))
        if stopping:
            # Holding the place keeps Ray from fetching more; the driver ends the job once nothing is in flight.
            time.sleep(self._grace)
            raise RaysightError("the job was stopped")
        if attempt > self._attempts:
            # Ray Data itself would retry without end.
            raise RaysightError(f"chunk {shard}/{chunk} was begun {self._attempts} times and never committed")
        try:
            result = self._worker.process(row, attempt)
        except self._device_error:
            # A sticky device error: this process can do nothing more. Ray starts another and retries the chunk.
            logging.getLogger(__name__).exception("device error; ending this worker")
            os._exit(_DEVICE_ERROR_EXIT)
        self._ask(self._coordinator.end, shard, chunk, otherwise=None)
        return result.to_table()

    @staticmethod
    def _ask(method: Any, shard: int, chunk: int, otherwise: Any) -> Any:
        """Calls the coordinator. Its node may die; it starts anew without memory, and the work goes on meanwhile."""
        try:
            return ray.get(method.remote(shard, chunk), timeout=_COORDINATOR_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            logging.getLogger(__name__).warning("the coordinator does not answer", exc_info=True)
            return otherwise


def build_dataset(spec: JobSpec, source: ChunkSource, coordinator: Any) -> ray.data.Dataset:
    """The lazy graph. The stages do not fuse: their resources differ, and a test asserts the plan's operators."""
    budget = spec.budget
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block for each row, and a row is a chunk
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a wait for spot nodes is legitimate; the job reports it
    context.max_consecutive_actor_init_deaths = _INIT_DEATHS
    context.actor_task_retry_on_errors = [UnavailableError]
    context.custom_execution_callback_classes = [ForgetBlockStats]
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
        )


def run_chunks(spec: JobSpec, pending: Pending, stop: threading.Event) -> Iterator[ChunkResult | None]:
    """Runs pending chunks and yields the result of each; None now and then, so that the caller can look at the clock.

    Once ``stop`` is set no chunk is begun; those in flight have ``grace_s`` seconds to commit.

    Raises:
        RaysightError: the job cannot go on. What is committed stays.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    coordinator = (
        ray.remote(Coordinator)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote()
    )
    dataset = build_dataset(spec, ChunkSource(spec, pending), coordinator)
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
            return root
        cause = getattr(root, "cause", None)
        below = cause if isinstance(cause, BaseException) else root.__cause__
        if below is None:
            break
        root = below
    lines = [line for line in str(root).strip().splitlines() if line.strip()]
    return RaysightError(f"Ray gave up: {type(root).__name__}: {lines[-1] if lines else ''}; run again to resume")


def _seal(config: Config, shard: int, chunks: tuple[int, ...], fingerprint: Fingerprint) -> int:
    seal_shard(open_store(config.dest, config.storage), shard, chunks, fingerprint)
    return shard


class Sealer:
    """Seals shards in tasks of their own, beside the extraction."""

    def __init__(self, config: Config, fingerprint: Fingerprint) -> None:
        self._config = config
        self._fingerprint = fingerprint
        self._seal = ray.remote(_seal).options(num_cpus=0, max_retries=3, retry_exceptions=[UnavailableError])
        self._running: list[Any] = []

    def submit(self, shard: int, chunks: tuple[int, ...]) -> None:
        """Starts sealing a shard."""
        self._running.append(self._seal.remote(self._config, shard, chunks, self._fingerprint))

    def done(self, *, wait: bool = False) -> Iterable[int]:
        """The shards sealed since the last call; with ``wait``, all that was submitted.

        Raises:
            RaysightError: a shard could not be sealed.
        """
        if not self._running:
            return []
        ready, self._running = ray.wait(
            self._running, num_returns=len(self._running), timeout=None if wait else 0, fetch_local=True
        )
        try:
            sealed: list[int] = ray.get(ready)
        except Exception as error:
            raise _explain(error) from error
        return sealed
