"""A store that counts the requests made through it; what they cost, a price list knows."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.errors import RejectError
    from pipeline.store import Fetched, Fetcher, ObjectInfo, Readable, Store

_PAGE = 1000  # keys that one LIST answers, and that one DELETE of many takes


class CountingFetcher:
    """Any fetcher; several threads may use it at once. Requests that a store repeats after a failure count once.

    Args:
        store: what does the work.
    """

    def __init__(self, store: Fetcher) -> None:
        self._fetcher = store
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self) -> dict[str, int]:
        """Requests since the last call: ``get``, ``put``, ``list``, ``head``, ``delete`` → how many, without zeros."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)

    def _count(self, kind: str, number: int = 1) -> None:
        if number:
            with self._lock:
                self._counts[kind] += number

    def check(self, *, missing_ok: bool = False) -> None:
        self._count("list")
        self._fetcher.check(missing_ok=missing_ok)

    def look_up(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        self._count("head", len(keys))
        return self._fetcher.look_up(keys)

    def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        self._count("get", len(keys))
        return self._fetcher.fetch_many(keys, max_bytes)

    def key(self, uri: str) -> str:
        return self._fetcher.key(uri)


class CountingReadable(CountingFetcher):
    """As :class:`CountingFetcher`, of a store to be read."""

    def __init__(self, store: Readable) -> None:
        super().__init__(store)
        self._readable = store

    @property
    def root(self) -> str:
        return self._readable.root

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._count("list")
        for number, item in enumerate(self._readable.list_objects(prefix)):
            if number and number % _PAGE == 0:
                self._count("list")
            yield item

    def get_file(self, key: str, path: Path) -> str:
        self._count("get")
        return self._readable.get_file(key, path)

    def uri(self, key: str) -> str:
        return self._readable.uri(key)


class CountingStore(CountingReadable):
    """As :class:`CountingFetcher`, of a store to be read and written."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._store = store

    def get(self, key: str) -> bytes:
        self._count("get")
        return self._store.get(key)

    def get_tail(self, key: str, size: int) -> bytes:
        self._count("get")
        return self._store.get_tail(key, size)

    def put(self, key: str, data: bytes) -> None:
        self._count("put")
        self._store.put(key, data)

    def put_file(self, key: str, path: Path, *, replace: bool = True) -> bool:
        self._count("put")
        return self._store.put_file(key, path, replace=replace)

    def replace_file(self, key: str, path: Path, version: str) -> bool:
        self._count("put")
        return self._store.replace_file(key, path, version)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._count("put")
        return self._store.put_if_absent(key, data)

    def delete(self, keys: Sequence[str]) -> None:
        self._count("delete", -(-len(keys) // _PAGE))
        self._store.delete(keys)

    def sweep(self, prefix: str) -> int:
        return self._store.sweep(prefix)
