"""The actor that Ray runs, and the coordinator that all actors of a job talk to."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from pipeline.actor import ChunkWorker, WorkerConfig
from pipeline.chunkrow import decode_rows
from pipeline.errors import RaysightError, UsageError
from pipeline.logs import configure
from pipeline.read import read_chunks
from pipeline.runlog import labels
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

    from pipeline.budget import Budget
    from pipeline.config import Config
    from pipeline.extractor import Extractor
    from pipeline.fingerprint import Fingerprint
    from pipeline.preprocess import Preprocessor

    ExtractorFactory = Callable[[], Extractor]

_COORDINATOR_S = 30.0  # seconds a worker waits for the coordinator before it goes on without
_DEVICE_ERROR_EXIT = 70  # EX_SOFTWARE of sysexits.h


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a worker needs to know. Names and numbers only: constructor arguments that live in Ray's object store
    would be lost with it, and an actor could not restart.

    Attributes:
        config: the run.
        budget: what Ray was asked for.
        fingerprint: that the extractor of every actor must have.
        factory: makes the extractor.
        preprocessor: that of the extractor, for tasks that decode; None where none does.
        run: name of the run.
    """

    config: Config
    budget: Budget
    fingerprint: Fingerprint
    factory: ExtractorFactory
    preprocessor: Preprocessor | None = None
    run: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """What the figures and the log of this run are told apart by."""
        return labels(self.run, self.config.dest)


class Coordinator:
    """Knows which chunks are in flight, how often each was begun, and whether the job is stopping."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[int, int], int] = {}
        self._decoding: dict[tuple[int, int], int] = {}
        self._ended = 0
        self._stopping = False

    def begin(self, shard: int, chunk: int) -> tuple[int, bool]:
        """The number of this attempt, from 1, and whether to leave the chunk alone because the job stops."""
        if self._stopping:
            return 0, True
        before = self._attempts.get((shard, chunk)) or self._decoding.pop((shard, chunk), 0)
        self._attempts[shard, chunk] = before + 1
        return self._attempts[shard, chunk], False

    def end(self, shard: int, chunk: int) -> None:
        """The chunk is committed."""
        self._attempts.pop((shard, chunk), None)
        self._ended += 1

    def begin_decoding(self, shard: int, chunk: int) -> int:
        """The number of this attempt of a task, from 1; where none ends, the actor's attempts count on from there."""
        self._decoding[shard, chunk] = self._decoding.get((shard, chunk), 0) + 1
        return self._decoding[shard, chunk]

    def end_decoding(self, shard: int, chunk: int) -> None:
        """The chunk is decoded, and none of its images is poison."""
        self._decoding.pop((shard, chunk), None)

    def stop(self) -> None:
        """No chunk is begun from now on."""
        self._stopping = True

    def drained(self, seen: int) -> bool:
        """Whether no chunk is in flight any more and the driver has seen the result of each that was."""
        return not self._attempts and seen >= self._ended


class ExtractActor:
    """The class that Ray Data makes actors of: a thin shell around :class:`pipeline.actor.ChunkWorker`."""

    def __init__(self, spec: JobSpec, coordinator: Any) -> None:
        configure(spec.config.job.log_format, spec.labels)

        self._refusal: RaysightError | None = None
        self._grace = spec.config.job.grace_s
        self._attempts = 1 + spec.config.job.task_retries
        self._coordinator = coordinator
        self._failures: dict[tuple[int, int], str] = {}
        try:
            self._worker = self._make_worker(spec)
        except RaysightError as error:
            # Raised with the first chunk: an error here counts as a death while loading, and Ray would try for long.
            self._refusal = error

    @staticmethod
    def _make_worker(spec: JobSpec) -> ChunkWorker:
        budget, config = spec.budget, spec.config
        extractor = spec.factory()
        if differences := spec.fingerprint.differences(extractor.fingerprint):
            raise UsageError(f"this worker's extractor is not the job's: {'; '.join(differences)}")
        batch_size = budget.batch_size
        if batch_size is None or extractor.compiles:
            batch_size = extractor.settle(batch_size, config.job.max_batch_size)
        return ChunkWorker(
            extractor,
            open_store(config.dest, config.storage),
            WorkerConfig(
                batch_size=batch_size,
                decode_threads=budget.decode_threads,
                forward_streams=budget.forward_streams,
                forward_threads=budget.forward_threads,
                forward_depth=budget.forward_depth,
                decode_timeout_s=config.job.decode_timeout_s,
                poison_attempts=config.job.poison_attempts,
            ),
        )

    def __call__(self, row: pa.Table) -> pa.Table:
        if self._refusal is not None:
            raise self._refusal
        shard, chunk = row["shard"][0].as_py(), row["chunk"][0].as_py()
        attempt, stopping = ask(self._coordinator.begin, shard, chunk, otherwise=(1, False))
        if stopping:
            # Holding the place keeps Ray from fetching more; the driver ends the job once nothing is in flight.
            time.sleep(self._grace)
            raise RaysightError("the job was stopped")
        if attempt > self._attempts:
            # Ray Data itself would retry without end.
            raise RaysightError(
                f"chunk {shard}/{chunk} was begun {self._attempts} times and never committed"
                f"{self._failures.get((shard, chunk), '')}"
            )
        try:
            result = self._worker.process(row, attempt)
        except Exception as error:
            self._failures[shard, chunk] = f"; {error}"
            from pipeline.deviceerrors import is_device_lost  # not at the top: read workers have no use for torch

            if not is_device_lost(error):
                raise
            # This process can do nothing more. Ray starts another and retries the chunk.
            logging.getLogger(__name__).exception("device error; ending this worker")
            os._exit(_DEVICE_ERROR_EXIT)
        self._failures.pop((shard, chunk), None)
        ask(self._coordinator.end, shard, chunk, otherwise=None)
        return result.to_table()


def decoded_chunks(
    config: Config, source: str, shard: int, chunks: Sequence[int], preprocessor: Preprocessor, coordinator: Any
) -> Iterator[pa.Table]:
    """A read task that decodes as well. What has killed it too often goes to the actor as it is."""

    def begin(shard: int, chunk: int) -> bool:
        attempt: int = ask(coordinator.begin_decoding, shard, chunk, otherwise=1)
        return attempt <= config.job.poison_attempts

    def end(shard: int, chunk: int) -> None:
        ask(coordinator.end_decoding, shard, chunk, otherwise=None)

    import torch  # not at the top: read workers that do not decode have no use for it

    torch.set_num_threads(1)  # a task is a core
    return decode_rows(read_chunks(config, source, shard, chunks), preprocessor, begin, end)


def ask(method: Any, shard: int, chunk: int, otherwise: Any) -> Any:
    """Calls the coordinator. Its node may die; it starts anew without memory, and the work goes on meanwhile."""
    try:
        return ray.get(method.remote(shard, chunk), timeout=_COORDINATOR_S)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        logging.getLogger(__name__).warning("the coordinator does not answer", exc_info=True)
        return otherwise
