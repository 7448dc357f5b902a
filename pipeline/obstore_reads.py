"""What buckets of every cloud share: objects read through obstore, many at once, each judged by itself."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore

from pipeline.errors import RejectError
from pipeline.judgement import judge_fetch, judge_look_up, rejection
from pipeline.store import Fetched, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path
    from typing import TypeVar

    from obstore.store import ObjectStore

    from pipeline.config import StorageConfig
    from pipeline.errors import StorageError

    _Key = TypeVar("_Key")
    _Answer = TypeVar("_Answer")

_BACKOFF_BASE = 3
"""obstore draws each pause between the first one and this multiple of the last; 2 would grow too slowly to matter."""


def client_options(config: StorageConfig, max_retries: int, *, allow_http: bool) -> dict[str, Any]:
    """Timeouts and retries, as arguments of obstore's stores."""
    return {
        "client_options": {
            "allow_http": allow_http,
            "connect_timeout": timedelta(seconds=config.connect_timeout_s),
            "timeout": timedelta(seconds=config.timeout_s),
        },
        "retry_config": {
            "max_retries": max_retries,
            "retry_timeout": timedelta(seconds=config.retry_timeout_s),
            "backoff": {"base": _BACKOFF_BASE},
        },
    }


def version(etag: str | None) -> str:
    """The version of an object with this ETag."""
    return (etag or "").strip('"')


def download(store: ObjectStore, name: str, path: Path) -> str:
    """Streams an object into a file and returns its version. Raises obstore's errors."""
    answer = obstore.get(store, name)
    with path.open("wb") as file:
        for part in answer.stream():
            file.write(part)
    return version(answer.meta["e_tag"])


async def head(store: ObjectStore, name: str, key: str) -> ObjectInfo:
    """What is known of an object. Raises obstore's errors."""
    meta = await obstore.head_async(store, name)
    return ObjectInfo(key, meta["size"], version(meta["e_tag"]))


async def fetch(store: ObjectStore, name: str, uri: str, max_bytes: int) -> Fetched:
    """An object's bytes. Raises obstore's errors, and RejectError for more than ``max_bytes``, before it is fetched."""
    answer = await obstore.get_async(store, name)
    if answer.meta["size"] > max_bytes:
        raise rejection("TooManyBytes", uri)
    return Fetched(bytes(await answer.bytes_async()), version(answer.meta["e_tag"]))


def look_up_each(
    keys: Sequence[str],
    ask: Callable[[str], Awaitable[ObjectInfo]],
    translate: Callable[[Exception, str], StorageError],
    uri: Callable[[str], str],
    at_once: int,
) -> list[ObjectInfo | None]:
    """As :meth:`pipeline.store.Fetcher.look_up`.

    Args:
        keys: of the objects.
        ask: what is known of one; raises whatever the client raises.
        translate: the error of this project, for the error of ``ask`` and the URI.
        uri: of a key.
        at_once: requests under way at most.
    """

    async def look_up(key: str) -> ObjectInfo | None:
        try:
            return await ask(key)
        except Exception as error:
            return judge_look_up(translate(error, uri(key)), key)

    return asyncio.run(_gather(look_up, keys, at_once))


def fetch_each(
    keys: Sequence[str],
    ask: Callable[[str], Awaitable[Fetched]],
    translate: Callable[[Exception, str], StorageError],
    uri: Callable[[str], str],
    at_once: int,
) -> list[Fetched | RejectError]:
    """As :meth:`pipeline.store.Fetcher.fetch_many`; arguments as of :func:`look_up_each`. ``ask`` may reject."""

    async def fetch_one(key: str) -> Fetched | RejectError:
        try:
            return await ask(key)
        except RejectError as reject:
            return reject
        except Exception as error:
            return judge_fetch(translate(error, uri(key)), uri(key))

    return asyncio.run(_gather(fetch_one, keys, at_once))


async def _gather(ask: Callable[[_Key], Awaitable[_Answer]], keys: Iterable[_Key], at_once: int) -> list[_Answer]:
    """``ask`` of each key, in order, with at most ``at_once`` under way. The first exception is raised."""
    places = asyncio.Semaphore(at_once)

    async def ask_in_turn(key: _Key) -> _Answer:
        async with places:
            return await ask(key)

    return list(await asyncio.gather(*(ask_in_turn(key) for key in keys)))
