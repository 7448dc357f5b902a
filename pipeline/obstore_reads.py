"""What buckets of every cloud share: objects read through obstore, many at once, each judged by itself."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions as obstore_errors

from pipeline.errors import RejectError
from pipeline.judgement import judge_fetch, judge_look_up, rejection
from pipeline.store import Fetched, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from obstore.store import ObjectStore

    from pipeline.config import StorageConfig
    from pipeline.errors import StorageError
    from pipeline.window import Window

_SLOW_DOWN = ("status code: 429", "status code: 503")
"""What obstore's message of a throttled request has in it. The key is in it as well, so a bare number would not do."""

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


async def fetch(
    stores: tuple[ObjectStore, ObjectStore], window: Window, name: str, uri: str, max_bytes: int
) -> Fetched:
    """An object's bytes. Raises obstore's errors, and RejectError for more than ``max_bytes``, before it is fetched.

    Args:
        stores: two clients of one store. The first does not retry, so that a wish to slow down is heard; whatever
            fails for a passing reason is then asked again through the second, with its pauses.
        window: is told how it went.
        name: of the object.
        uri: of the object, for errors.
        max_bytes: of an object at most.
    """
    began = window.begin()
    try:
        fetched = await _fetch(stores[0], name, uri, max_bytes)
    except (RejectError, obstore_errors.NotFoundError, FileNotFoundError):
        raise
    except (obstore_errors.PermissionDeniedError, obstore_errors.UnauthenticatedError):
        raise
    except Exception as error:
        if any(sign in str(error) for sign in _SLOW_DOWN):
            window.throttled(began)
        return await _fetch(stores[1], name, uri, max_bytes)
    window.answered()
    return fetched


async def _fetch(store: ObjectStore, name: str, uri: str, max_bytes: int) -> Fetched:
    answer = await obstore.get_async(store, name)
    if answer.meta["size"] > max_bytes:
        raise rejection("TooManyBytes", uri)
    return Fetched(bytes(await answer.bytes_async()), version(answer.meta["e_tag"]))


def look_up_each(
    keys: Sequence[str],
    ask: Callable[[str], Awaitable[ObjectInfo]],
    translate: Callable[[Exception, str], StorageError],
    uri: Callable[[str], str],
    window: Window,
) -> list[ObjectInfo | None]:
    """As :meth:`pipeline.store.Fetcher.look_up`.

    Args:
        keys: of the objects.
        ask: what is known of one; raises whatever the client raises.
        translate: the error of this project, for the error of ``ask`` and the URI.
        uri: of a key.
        window: how many requests are under way.
    """

    async def look_up(key: str) -> ObjectInfo | None:
        try:
            return await ask(key)
        except Exception as error:
            return judge_look_up(translate(error, uri(key)), key)

    return asyncio.run(window.each(look_up, keys))


def fetch_each(
    keys: Sequence[str],
    ask: Callable[[str], Awaitable[Fetched]],
    translate: Callable[[Exception, str], StorageError],
    uri: Callable[[str], str],
    window: Window,
) -> list[Fetched | RejectError]:
    """As :meth:`pipeline.store.Fetcher.fetch_many`; arguments as of :func:`look_up_each`. ``ask`` may reject."""

    async def fetch_one(key: str) -> Fetched | RejectError:
        try:
            return await ask(key)
        except RejectError as reject:
            return reject
        except Exception as error:
            return judge_fetch(translate(error, uri(key)), uri(key))

    return asyncio.run(window.each(fetch_one, keys))
