"""Decoding ahead of the device: the images of a chunk, in order, by threads that each take a few at once."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.errors import RejectError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future

    from pipeline.prepared import Prepared

    Item = memoryview | Prepared | RejectError
    """An encoded image, one that is decoded already, or why it could not be read."""

_GROUPS_PER_BATCH = 8
_GROUPS_PER_THREAD = 2


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of some images, one after another, and the wall and CPU seconds of all of them."""

    outcomes: list[Prepared | RejectError]
    seconds: float
    cpu_seconds: float


def group_size(batch_size: int, rows: int, threads: int) -> int:
    """Images that a thread takes at once.

    Each hand-over is a lock, a wake-up and a turn of the interpreter's, which small images feel. But a batch should
    not wait for one thread, and a chunk of few large images should keep all threads busy.

    Args:
        batch_size: images of a forward.
        rows: images of the chunk.
        threads: that decode.
    """
    return max(1, min(batch_size // _GROUPS_PER_BATCH, rows // (_GROUPS_PER_THREAD * threads)))


def decode(items: list[Item], prepare: Callable[[memoryview], Prepared]) -> Decoded:
    """Prepares what is encoded."""
    before, cpu = time.perf_counter(), time.thread_time()
    outcomes: list[Prepared | RejectError] = []
    for item in items:
        try:
            outcomes.append(prepare(item) if isinstance(item, memoryview) else item)
        except RejectError as reject:
            outcomes.append(reject)
    return Decoded(outcomes, time.perf_counter() - before, time.thread_time() - cpu)


def decode_ahead(
    items: Iterator[Item], prepare: Callable[[memoryview], Prepared], pool: Executor, *, ahead: int, group: int
) -> Iterator[Decoded]:
    """Decodes on threads.

    Args:
        items: of a chunk.
        prepare: may raise RejectError; several threads call it.
        pool: of threads.
        ahead: images that are decoded at most before they are needed, a group more or less.
        group: images that a thread takes at once.

    Yields:
        groups of images, in the order of ``items``.
    """
    window: deque[Future[Decoded]] = deque()
    while some := list(islice(items, group)):
        window.append(pool.submit(decode, some, prepare))
        if len(window) * group > ahead:
            yield window.popleft().result()
    while window:
        yield window.popleft().result()
