"""Passes of batches through a device: copies beside the computing, and smaller batches when its memory ends.

The same code runs on a CPU, where copies are none and streams and events do nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.batching import find_batch_size, padded_size, static_sizes
from pipeline.deviceerrors import is_device_lost, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    Compute = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]

_TRIES = 3
"""Passes of one size that are timed for :meth:`Passes.find_batch_size`, after one that is not; the fastest counts."""


class _Lane:
    """The way of one batch at a time to a device: page-locked memory, and a stream for the copy out of it."""

    def __init__(self, device: torch.device) -> None:
        accelerator = torch.get_device_module(device)
        blocking = {"blocking": True} if device.type == "cuda" else {}  # a thread that waits must not hold a core
        self.uploaded, self.done = accelerator.Event(**blocking), accelerator.Event(**blocking)
        self._device = device
        self._copying = accelerator.Stream()
        self._on_copying = accelerator.stream
        self._here = self._there = torch.empty(0, dtype=torch.uint8)

    def upload(self, batch: Sequence[NDArray[np.uint8]], size: int) -> torch.Tensor:
        """Begins to copy n images (H, W, 3); ``uploaded`` says when they are there.

        Returns:
            (size, H, W, 3) uint8 on the device, good until the next call; past n stands whatever stood there.
        """
        shape = (size, *batch[0].shape)
        if self._here.shape[1:] != shape[1:] or len(self._here) < size:
            self._here = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        np.stack(batch, out=self._here[: len(batch)].numpy())
        with self._on_copying(self._copying):
            # Kept until `done`: the allocator knows of this stream alone, and may not hand the memory out before.
            self._there = self._here[:size].to(self._device, non_blocking=True)
            self.uploaded.record(self._copying)
        return self._there


class Passes:
    """Runs batches through a computation on a device. Threads may call :meth:`run` at once.

    On a GPU the batch of one thread is copied while that of another is computed; on a CPU both compute.

    Args:
        compute: (n, H, W, 3) uint8 on the device to tensors (n, …) there.
        device: where.
        compiled: the same as ``compute``, for a few sizes of n alone, which batches are padded to; or None.
    """

    def __init__(self, compute: Compute, device: torch.device, compiled: Compute | None = None) -> None:
        self._compute, self._compiled = compute, compiled
        self._device = device
        self._accelerator = torch.get_device_module(device)
        # Kernels of two batches that mix would both be done late; and a CPU has nothing to put in order.
        self._order: AbstractContextManager[Any] = threading.Lock() if device.type == "cuda" else nullcontext()
        self._lanes: deque[_Lane] = deque()
        self._most: int | None = None
        self._lost: BaseException | None = None

    @property
    def most(self) -> int | None:
        """Images of one pass at most: as settled, or what lack of memory left of it; None is all of a batch."""
        return self._most

    @torch.inference_mode()
    def run(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
        """The outputs of n images (H, W, 3), as arrays (n, …).

        A batch for which the memory of the device does not suffice is halved, and so are all after it.

        Raises:
            torch.OutOfMemoryError: a single image is too much.
            RuntimeError: whatever else the device reports.
        """
        parts: list[dict[str, NDArray[Any]]] = []
        begun = 0
        while begun < len(batch):
            most = self._most or len(batch)  # once: another thread may lower it meanwhile
            part = batch[begun : begun + most]
            if (found := self._try(part, most)) is None:
                self._most = min(self._most or len(part), (len(part) + 1) // 2)
            else:
                parts.append(found)
                begun += len(part)
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _try(self, batch: Sequence[NDArray[np.uint8]], most: int) -> dict[str, NDArray[Any]] | None:
        """None where memory does not suffice. By then the error, which holds all that was allocated, is gone."""
        try:
            if self._compiled is None:
                return self._pass(batch, len(batch), self._compute)
            return self._pass(batch, padded_size(len(batch), most), self._compiled)
        except Exception as error:
            if is_device_lost(error):
                self._lost = error
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
            return None

    def _pass(self, batch: Sequence[NDArray[np.uint8]], size: int, compute: Compute) -> dict[str, NDArray[Any]]:
        """One batch, of which ``size`` images go through the device."""
        with self._lane() as lane:
            pixels = lane.upload(batch, size)
            with self._order:
                # The default stream, one for all threads: a batch's outputs are copied before the next one begins.
                computing = self._accelerator.current_stream()
                computing.wait_event(lane.uploaded)
                outputs = compute(pixels)
                here = {name: there[: len(batch)].to("cpu", non_blocking=True) for name, there in outputs.items()}
                lane.done.record(computing)
            lane.done.synchronize()
        return {name: values.numpy() for name, values in here.items()}

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        try:
            lane = self._lanes.pop()
        except IndexError:
            lane = _Lane(self._device)
        yield lane
        self._lanes.append(lane)  # not after an error, when a copy may still be under way

    def bare(self, pixels: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The computation alone, of (n, H, W, 3) uint8 on the device, begun: for measurements."""
        return (self._compiled or self._compute)(pixels)

    def settle(self, batch_size: int | None, most: int, shape: tuple[int, int, int]) -> int:
        """Decides how many images a pass has, and runs one of each size there will be: the first takes longer.

        Args:
            batch_size: None finds out what is fast.
            most: then the bound.
            shape: of an image.
        """
        self._most = batch_size or self.find_batch_size(most, shape)
        blank = np.zeros(shape, np.uint8)
        for size in static_sizes(self._most) if self._compiled else (self._most,):
            self.run([blank] * size)
        return self._most

    @torch.inference_mode()
    def find_batch_size(self, most: int, shape: tuple[int, int, int]) -> int:
        """As :func:`pipeline.batching.find_batch_size`, without compiling every size."""
        blank = np.zeros(shape, np.uint8)

        def seconds(size: int) -> float:
            times = []
            for _ in range(1 + _TRIES):
                start = time.perf_counter()
                self._pass([blank] * size, size, self._compute)
                times.append(time.perf_counter() - start)
            return min(times[1:])

        return find_batch_size(seconds, most)

    def check(self) -> None:
        """Raises when the device is lost: what it raised before, or what it says now."""
        if self._lost is not None:
            raise self._lost
        self._accelerator.synchronize()
