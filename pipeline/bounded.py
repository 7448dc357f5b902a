"""Many small requests at once, but no more than a bound."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_Key = TypeVar("_Key")
_Answer = TypeVar("_Answer")


async def gather_bounded(
    ask: Callable[[_Key], Awaitable[_Answer]], keys: Iterable[_Key], at_once: int
) -> list[_Answer]:
    """``ask`` of each key, in order, with at most ``at_once`` under way. The first exception is raised."""
    places = asyncio.Semaphore(at_once)

    async def ask_in_turn(key: _Key) -> _Answer:
        async with places:
            return await ask(key)

    return list(await asyncio.gather(*(ask_in_turn(key) for key in keys)))
