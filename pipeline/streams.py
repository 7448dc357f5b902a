"""Forwards side by side: how a worker keeps its device busy from several chunks and threads at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.extractor import Extractor


@dataclass(frozen=True, slots=True)
class Forwarded:
    """Features of one batch, as ``Extractor.forward`` gives them, and the seconds for which they held the device.

    ``cpu_seconds`` are those of the calling thread alone: all of them on a CPU, where a forward has one thread.
    """

    features: Mapping[str, np.ndarray[Any, Any]]
    seconds: float
    cpu_seconds: float


class ForwardStreams:
    """Runs forwards, ``streams`` of them at a time.

    A GPU computes one after another; with a ``depth`` of two, a batch is on its way there meanwhile. On a CPU a stream
    is a core: threads that share one forward wait for the slowest of them after every layer, so whatever else runs on
    one core for a moment costs them all (docs/performance.md).

    Args:
        extractor: whose ``forward`` is called.
        streams: forwards at a time.
        threads: of torch, in each.
        depth: batches in hand for each stream, which it works through one after another.

    Attributes:
        in_hand: batches in hand at most, of all streams.
    """

    def __init__(self, extractor: Extractor, streams: int, threads: int, depth: int = 1) -> None:
        import torch  # not at the top: read and seal workers have no use for it

        self._extractor = extractor
        self.streams = streams
        self.in_hand = streams * depth
        self._one_by_one = depth > 1
        self._free_since = 0.0
        self._lock = threading.Lock()
        # torch keeps a number of threads for each thread.
        self._pool = ThreadPoolExecutor(
            self.in_hand, thread_name_prefix="forward", initializer=torch.set_num_threads, initargs=(threads,)
        )
        # A thread of its own: OpenMP keeps helpers for each, and they stop waiting awake for one another once there are
        # more than cores, which makes every layer wait for the kernel.
        self._alone = ThreadPoolExecutor(
            1, thread_name_prefix="alone", initializer=torch.set_num_threads, initargs=(streams * threads,)
        )

    def settle(self, size: int) -> None:
        """Forwards of all sizes up to ``size``, by threads that will compute: a compiled model knows torch's number."""
        for pool in (self._pool, self._alone) if self.streams > 1 else (self._pool,):
            pool.submit(self._extractor.settle, size, size).result()
        # What OpenVINO compiles, it compiles for each thread. Nobody leaves before all have come, so all do it.
        barrier = threading.Barrier(self.in_hand)

        def settle() -> None:
            barrier.wait()
            self._extractor.settle(size, size)

        for future in [self._pool.submit(settle) for _ in range(self.in_hand)]:
            future.result()

    def submit(self, batch: Sequence[NDArray[np.uint8]], *, alone: bool = False) -> Future[Forwarded]:
        """Queues a batch. The future raises what the forward raises.

        Args:
            batch: as ``Extractor.forward`` takes it.
            alone: it gets the threads of all streams; for a caller that knows of nothing else to do.
        """
        if alone and self.streams > 1:
            return self._alone.submit(self._forward, batch, self.streams)
        return self._pool.submit(self._forward, batch, 1)

    def _forward(self, batch: Sequence[NDArray[np.uint8]], share: int) -> Forwarded:
        before, cpu = time.perf_counter(), time.thread_time()
        features = self._extractor.forward(batch)
        after, cpu = time.perf_counter(), time.thread_time() - cpu
        if self._one_by_one:
            with self._lock:  # the device had the batch before until then
                before = max(before, self._free_since)
                after = self._free_since = max(after, before)
        return Forwarded(features, (after - before) * share / self.streams, cpu)
