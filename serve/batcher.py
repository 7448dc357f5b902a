"""Single images in, batches on the device, single rows out. Plain asyncio, for one event loop.

Nobody waits for a batch to fill: a device that is free takes what there is, and while it is busy the next batch
gathers. So one client sees no delay, and many see full batches. An image whose request has gone, or whose time is over,
is dropped before the device sees it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Row = Mapping[str, NDArray[Any]]

    from pipeline.sections import ServeConfig
    from pipeline.streams import ForwardStreams

_GPU_BATCH, _CPU_BATCH = 64, 2


def batch_size(config: ServeConfig, *, on_gpu: bool) -> int:
    """Images of one forward at most."""
    return config.batch_size or (_GPU_BATCH if on_gpu else _CPU_BATCH)


@dataclass(frozen=True, slots=True)
class _Item:
    pixels: NDArray[np.uint8]
    deadline: float
    future: asyncio.Future[Row]


class Batcher:
    """Feeds the streams of a device, each with at most ``batch_size`` images at a time."""

    def __init__(
        self,
        forwards: ForwardStreams,
        batch_size: int,
        observe: Callable[[float, int], None],
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Further arguments.

        Args:
            observe: told the seconds of every forward, as the device was held, and its images.
            alone: whether an image is the only one far and wide; it gets the threads of all streams then, unless a
                forward is under way.
        """
        self._forwards = forwards
        self._batch_size = batch_size
        self._observe = observe
        self._alone = alone
        self._items: deque[_Item] = deque()
        self._some = asyncio.Event()
        self._under_way = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to work, on the running event loop."""
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._forwards.streams)]

    async def stop(self) -> None:
        """Ends the work; who still waits is cancelled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for item in self._items:
            item.future.cancel()

    @property
    def waiting(self) -> int:
        """Images that no forward has taken yet."""
        return len(self._items)

    async def submit(self, pixels: NDArray[np.uint8], deadline: float) -> Row:
        """One image's features.

        Args:
            pixels: (H, W, 3) uint8, as ``prepare`` makes them.
            deadline: in the event loop's time.

        Raises:
            TimeoutError: the deadline passed before the device was free.
            RejectError: a value is NaN or infinite.
            Exception: whatever ``forward`` raised, to each of its batch.
        """
        future: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._items.append(_Item(pixels, deadline, future))
        self._some.set()
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            batch = self._take(loop.time())
            if not batch:
                continue
            # A forward whose client has gone still runs: who waits behind it would get to the device too late.
            alone = self._under_way == 0 and self._alone()
            self._under_way += 1
            try:
                done = await asyncio.wrap_future(self._forwards.submit([item.pixels for item in batch], alone=alone))
            except Exception as error:
                for item in batch:
                    _fail(item, error)
                continue
            finally:
                self._under_way -= 1
            self._observe(done.seconds, len(batch))
            finite = np.logical_and.reduce(
                [np.isfinite(values.reshape(len(batch), -1)).all(axis=1) for values in done.features.values()]
            )
            for place, item in enumerate(batch):
                if not finite[place]:
                    _fail(item, not_finite())
                elif not item.future.done():
                    item.future.set_result({name: values[place] for name, values in done.features.items()})

    def _take(self, now: float) -> list[_Item]:
        """The oldest images that are still wanted; empty when another stream was faster."""
        batch: list[_Item] = []
        while self._items and len(batch) < self._batch_size:
            item = self._items.popleft()
            if item.future.done():
                continue
            if item.deadline <= now:
                item.future.set_exception(TimeoutError("the deadline passed before the device was free"))
            else:
                batch.append(item)
        if not self._items:
            self._some.clear()
        return batch


def _fail(item: _Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)
