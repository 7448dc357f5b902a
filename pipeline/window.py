"""How many requests a store is asked at once: fewer when it asks to slow down, more again while it does not."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    _Key = TypeVar("_Key")
    _Answer = TypeVar("_Answer")

_POLL_S = 0.02  # of a place that is closed for now


class Window:
    """A bound that halves, and grows by one with each round of answers (additive increase, multiplicative decrease).

    Several threads may share one, and should: it is what is known of the store.

    Args:
        most: requests under way at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit = float(most)
        self._halvings = 0
        self._lock = threading.Lock()

    @property
    def limit(self) -> int:
        """Requests that may be under way now; at least 1."""
        return int(self._limit)

    def begin(self) -> int:
        """A mark of when a request began, for :meth:`throttled`."""
        return self._halvings

    def answered(self) -> None:
        """A request was answered."""
        with self._lock:
            self._limit = min(float(self.most), self._limit + 1 / self._limit)

    def throttled(self, began: int) -> None:
        """A request was told to slow down. Those that began before the last halving say nothing new."""
        with self._lock:
            if began == self._halvings:
                self._limit = max(1.0, self._limit / 2)
                self._halvings += 1

    async def each(self, ask: Callable[[_Key], Awaitable[_Answer]], keys: Iterable[_Key]) -> list[_Answer]:
        """``ask`` of each key, in order, no more under way than the window is wide. Raises the first exception."""
        waiting = deque(enumerate(keys))
        answers: dict[int, _Answer] = {}

        async def place(number: int) -> None:
            while waiting:
                if number >= self.limit:
                    await asyncio.sleep(_POLL_S)
                    continue
                index, key = waiting.popleft()
                answers[index] = await ask(key)

        await asyncio.gather(*map(place, range(min(self.most, len(waiting)))))
        return [answers[index] for index in range(len(answers))]
