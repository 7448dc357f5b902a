"""What a store is: one small interface over folders, buckets and web servers. ``pipeline.storage`` opens them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.errors import RejectError


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing.

    Attributes:
        key: name relative to the store's root.
        size: bytes; -1 where the store would not say.
        version: changes when the content does: the ETag of a bucket, size and mtime (ns) of a file.
    """

    key: str
    size: int
    version: str

    @property
    def seen(self) -> bool:
        """Whether the store told anything; else the object may be there or not."""
        return self.size >= 0

    @classmethod
    def unseen(cls, key: str) -> ObjectInfo:
        """An object that the store would not say anything of, such as a forbidden one."""
        return cls(key, -1, "")


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes of one object and the version they belong to."""

    data: bytes
    version: str


class Fetcher(Protocol):
    """Objects of one or several stores. Every call raises a :class:`~pipeline.errors.StorageError` on failure."""

    def check(self, *, missing_ok: bool = False) -> None:
        """One contact that fails soon, before any work or when reads have failed.

        Args:
            missing_ok: a folder may still have to be made (a bucket never is).

        Raises:
            UsageError: there is no such bucket or folder.
            StorageError: it cannot be reached or used.
        """

    def look_up(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        """What the store knows of each object, in order; None for one that is not there.

        One that may not be seen is not ``seen``: nobody knows whether it is gone.
        """

    def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        """Many objects at once, in order; what is wrong with one object stands in its place.

        An object that the store failed to deliver after all retries is an ``Unavailable`` one: whether that is bad
        luck of one object or an outage is for the caller to tell. What is wrong with the whole store (its folder or
        bucket is gone, the credentials are not good, or no longer) is Unavailable as well, and :meth:`check` says it.
        """

    def key(self, uri: str) -> str:
        """What the other calls take for a URI."""


class Readable(Fetcher, Protocol):
    """Objects below a root, to be read."""

    @property
    def root(self) -> str:
        """What stands before a key in a URI, such as ``s3://bucket/prefix/`` or ``/data/photos/``."""

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, streamed; what is half-written is not among them."""

    def get_file(self, key: str, path: Path) -> str:
        """Streams the object into a local file and returns its version. Raises NotFoundError."""

    def uri(self, key: str) -> str:
        """What stands for the object in the ``uri`` column; the inverse of :meth:`key`."""


class Store(Readable, Protocol):
    """Objects below a root, to be read and written."""

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises NotFoundError when it does not exist."""

    def get_tail(self, key: str, size: int) -> bytes:
        """The last ``size`` bytes of an object, or all where it has fewer. Raises NotFoundError."""

    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces an object atomically and durably."""

    def put_file(self, key: str, path: Path, *, replace: bool = True) -> bool:
        """Uploads a file atomically; with ``replace=False`` an existing object wins and False comes back.

        Where the store lacks conditional puts, two uploads at the same moment can both win.
        """

    def replace_file(self, key: str, path: Path, version: str) -> bool:
        """Uploads a file atomically in place of this very version of the object; False when it has another by now.

        Where the store lacks conditional puts, and in a folder, there are milliseconds between the look and the write.
        """

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Creates an object, or returns False if it exists. Raises UnsupportedError where the store cannot."""

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; those already gone count as deleted."""

    def sweep(self, prefix: str) -> int:
        """Deletes what writers that died left half-written below ``prefix``; returns how many."""
