"""How many images go through a device in one pass: found by trying, and cut to sizes that a compiled model knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.deviceerrors import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable

_GAIN = 1.05
"""A larger batch must bring so much: below, it only costs memory, and time at the end of a chunk."""

_PATIENCE = 2
"""Sizes in a row that may fail to gain: one alone may just fill the device badly."""

_STEP = 4
"""Between two sizes of a compiled model: a pass computes less than so many times what it is asked for, in few sizes."""


def find_batch_size(seconds: Callable[[int], float], most: int) -> int:
    """The smallest power of two that is nearly as fast an image as any tried: doubles until that stops to gain.

    Args:
        seconds: of one pass of so many images. An error for lack of memory ends the search; of one image, it is raised.
        most: images of one pass at most.
    """
    rates = {1: 1 / seconds(1)}
    best, idle, size = 1, 0, 2
    while size <= most and idle < _PATIENCE:
        try:
            rates[size] = size / seconds(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        best, idle = (size, 0) if rates[size] >= _GAIN * rates[best] else (best, idle + 1)
        size *= 2
    return best


def static_sizes(most: int) -> tuple[int, ...]:
    """The few sizes that batches of up to ``most`` images are padded to, ascending."""
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size *= _STEP
    return (*sizes, most)


def padded_size(count: int, most: int) -> int:
    """The least of the static sizes that holds ``count`` images, of which there are ``most`` or fewer."""
    return next(size for size in static_sizes(most) if size >= count)
