"""Forwards side by side: how a worker keeps its device busy from several chunks and threads at once."""

from __future__ import annotations

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

    A GPU takes one after another. On a CPU a stream is a core: threads that share one forward wait for the slowest of
    them after every layer, so whatever else runs on one core for a moment costs them all (docs/performance.md).

    Args:
        extractor: whose ``forward`` is called.
        streams: forwards at a time.
        threads: of torch, in each.
    """

    def __init__(self, extractor: Extractor, streams: int, threads: int) -> None:
        import torch  # not at the top: read and seal workers have no use for it

        self._extractor = extractor
        self.streams = streams
        # torch keeps a number of threads for each thread.
        self._pool = ThreadPoolExecutor(
            streams, thread_name_prefix="forward", initializer=torch.set_num_threads, initargs=(threads,)
        )

    def submit(self, batch: Sequence[NDArray[np.uint8]]) -> Future[Forwarded]:
        """Queues a batch. The future raises what the forward raises."""
        return self._pool.submit(self._forward, batch)

    def _forward(self, batch: Sequence[NDArray[np.uint8]]) -> Forwarded:
        before, cpu = time.perf_counter(), time.thread_time()
        features = self._extractor.forward(batch)
        return Forwarded(features, (time.perf_counter() - before) / self.streams, time.thread_time() - cpu)
