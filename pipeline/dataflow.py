"""The Ray Data graph of a job: pending chunks → read tasks → autoscaling actor pool → small result rows.

Pixels never cross the object store: encoded bytes go to the actor, and figures come back.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.budget import ALLOCATOR
from pipeline.errors import UnavailableError
from pipeline.logs import configure
from pipeline.raystats import ForgetBlockStats
from pipeline.read import read_chunks
from pipeline.worker import ExtractActor, JobSpec, decoded_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from pipeline.config import Config
    from pipeline.manifest import Manifest
    from pipeline.plan import Pending

_CALLS_PER_ACTOR = 2  # one decodes or commits while the other holds the device
_TASKS_PER_ACTOR = 4  # Ray Data grows the pool only when queued calls exceed 1.75 × concurrent ones
_INIT_DEATHS = 10  # actors that may die while loading, in a row, before the job gives up (spot losses)
_CHUNKS_PER_READ_TASK = 16
_CHUNKS_AHEAD = 3 * _TASKS_PER_ACTOR  # for each actor: those it was handed, and two more rounds


class ChunkSource(Datasource):  # type: ignore[misc]  # ray ships no types
    """Pending chunks as read tasks. Each yields its chunks one by one, in a fixed order, a row and a block each."""

    def __init__(self, spec: JobSpec, manifest: Manifest, pending: Pending, coordinator: Any) -> None:
        total = sum(len(chunks) for _, chunks in pending)
        # Few chunks: spread them over all readers. Many: fewer tasks than chunks, for the driver's memory.
        size = max(1, min(_CHUNKS_PER_READ_TASK, total // (8 * spec.budget.read_tasks)))
        self._spec = spec
        self._coordinator = coordinator
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
        read: Callable[..., Iterator[pa.Table]] = read_chunks
        if config.job.decode == "tasks":
            assert self._spec.preprocessor is not None
            read = functools.partial(
                decoded_chunks, preprocessor=self._spec.preprocessor, coordinator=self._coordinator
            )
        return [
            ReadTask(
                functools.partial(_read, config, source, shard, chunks, read, self._spec.labels),
                BlockMetadata(num_rows=len(chunks), size_bytes=None, input_files=None, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for source, shard, chunks in self._tasks
        ]


def _read(
    config: Config,
    source: str,
    shard: int,
    chunks: Sequence[int],
    read: Callable[..., Iterator[pa.Table]],
    fields: Mapping[str, str],
) -> Iterator[pa.Table]:
    """What Ray runs: its worker logs as the job does."""
    configure(config.job.log_format, fields)
    return read(config, source, shard, chunks)


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
    job = spec.config.job
    chunk = job.chunk_pixel_bytes if job.decode == "tasks" else job.chunk_bytes
    ahead = budget.max_actors * _CHUNKS_AHEAD * chunk
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=ahead)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray.data.DataContext.current(context):
        return ray.data.read_datasource(
            source,
            override_num_blocks=source.task_count,
            num_cpus=budget.cpus_per_read,
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
