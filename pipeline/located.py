"""Objects of several stores by their URIs: what a read task, a table of URIs and ``verify`` go through."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import BadUriError, ForbiddenError, RejectError
from pipeline.storage import ObjectInfo, open_readable, split_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pipeline.config import StorageConfig
    from pipeline.storage import Fetched, Readable

_Answer = TypeVar("_Answer")


class Located:
    """The stores below which URIs lie, each opened once and asked for all of its URIs together.

    Has the reading half of :class:`~pipeline.store.Store`, with URIs for keys. Several threads may use it at once.

    Args:
        roots: stores that are asked for what lies below them; a folder that vanishes as a whole is noticed then.
            Anything else is asked of its bucket, of the local disk, or of the web.
        storage: how they are talked to.
    """

    def __init__(self, roots: Iterable[str], storage: StorageConfig) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._roots = [open_readable(root, storage) for root in roots]
        self._stores: dict[str, Readable] = {}

    def key(self, uri: str) -> str:
        """The URI itself."""
        return uri

    def check(self, *, missing_ok: bool = False) -> None:
        """As that of each store that was used. Raises as it does."""
        for store in self._roots:
            store.check(missing_ok=missing_ok)
        for store in self._stores.values():
            # Who may read single objects need not be allowed to list the bucket; the store is there all the same.
            with contextlib.suppress(ForbiddenError):
                store.check(missing_ok=missing_ok)

    def fetch_many(self, uris: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        """As :meth:`pipeline.store.Readable.fetch_many`; what is no URI is a BadUri."""
        return self._ask(
            uris,
            lambda store, keys: store.fetch_many(keys, max_bytes),
            lambda _, error: RejectError("read", "BadUri", str(error)),
        )

    def look_up(self, uris: Sequence[str]) -> list[ObjectInfo | None]:
        """As :meth:`pipeline.store.Readable.look_up`; what is no URI is not seen, and the read judges it."""
        return self._ask(uris, lambda store, keys: store.look_up(keys), lambda uri, _: ObjectInfo.unseen(uri))

    def _ask(
        self,
        uris: Sequence[str],
        ask: Callable[[Readable, list[str]], list[_Answer]],
        judge: Callable[[str, BadUriError], _Answer],
    ) -> list[_Answer]:
        groups: dict[int, tuple[Readable, list[int], list[str]]] = {}
        found: dict[int, _Answer] = {}
        for index, uri in enumerate(uris):
            try:
                store, key = self._locate(uri)
            except BadUriError as error:
                found[index] = judge(uri, error)
                continue
            _, places, keys = groups.setdefault(id(store), (store, [], []))
            places.append(index)
            keys.append(key)
        for store, places, keys in groups.values():
            found.update(zip(places, ask(store, keys), strict=True))
        return [found[index] for index in range(len(uris))]

    def _locate(self, uri: str) -> tuple[Readable, str]:
        for store in self._roots:
            if uri.startswith(store.root):
                return store, store.key(uri)
        root, name = split_uri(uri)
        with self._lock:
            if root not in self._stores:
                self._stores[root] = open_readable(root, self._storage)
            store = self._stores[root]
        return store, store.key(name)
