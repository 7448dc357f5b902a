"""Google Cloud Storage and Azure Blob Storage as stores, read only; credentials are those of obstore's environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import AzureStore, GCSStore

from pipeline import obstore_reads
from pipeline.bucket_errors import gone_bucket, translate
from pipeline.errors import NotFoundError, UsageError
from pipeline.store import ObjectInfo
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.config import StorageConfig
    from pipeline.errors import RejectError, StorageError
    from pipeline.store import Fetched

_NAMES = {"gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_CREDENTIALS = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


class CloudStore:
    """Objects below ``gs://bucket/prefix/`` or ``az://container/prefix/``. Several threads may use it at once.

    Keys with empty, ``.`` or ``..`` segments cannot be named by obstore, and count as not there.
    """

    def __init__(self, url: str, config: StorageConfig) -> None:
        self._scheme, _, rest = url.partition("://")
        self._bucket, _, prefix = rest.partition("/")
        if not self._bucket:
            raise UsageError(f"{url}: the bucket is missing; write {self._scheme}://bucket/prefix")
        self._prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        self._window = Window(config.max_in_flight)
        self._store = self._open(config, config.max_retries)
        self._hasty = self._open(config, 1)
        self._readers = (self._open(config, 0), self._store)

    def _open(self, config: StorageConfig, max_retries: int) -> GCSStore | AzureStore:
        kind: Any = GCSStore if self._scheme == "gs" else AzureStore
        unsigned = {"skip_signature": True} if config.anonymous else {}
        try:
            store: GCSStore | AzureStore = kind(
                self._bucket,
                **obstore_reads.client_options(config, max_retries, allow_http=True),
                **unsigned,
            )
        except (obstore_errors.BaseError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"{self.root}: {reason}; set {_CREDENTIALS[self._scheme]}") from error
        return store

    @property
    def root(self) -> str:
        return f"{self._scheme}://{self._bucket}/{self._prefix}"

    def check(self, *, missing_ok: bool = False) -> None:
        del missing_ok
        try:
            next(iter(obstore.list(self._hasty, self._prefix or None, chunk_size=1)), None)
        except Exception as error:
            failure = self._translate(error, self.root)
            if isinstance(failure, NotFoundError) or gone_bucket(error):
                raise UsageError(f"there is no bucket {self._scheme}://{self._bucket}") from error
            raise failure from error

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # obstore lists whole segments alone: what begins with "ab" is sought among what "a/" holds.
        below, _, start = (self._prefix + prefix).rpartition("/")
        try:
            for page in obstore.list(self._store, below or None):
                for item in page:
                    if item["path"].startswith(self._prefix + prefix if start else self._prefix):
                        key = item["path"][len(self._prefix) :]
                        yield ObjectInfo(key, item["size"], obstore_reads.version(item["e_tag"]))
        except Exception as error:
            raise self._translate(error, self.root + prefix) from error

    def get_file(self, key: str, path: Path) -> str:
        try:
            return obstore_reads.download(self._store, self._prefix + key, path)
        except Exception as error:
            raise self._translate(error, self.uri(key)) from error

    def look_up(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        return obstore_reads.look_up_each(
            keys,
            lambda key: obstore_reads.head(self._store, self._prefix + key, key),
            self._translate,
            self.uri,
            self._window,
        )

    def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        return obstore_reads.fetch_each(
            keys,
            lambda key: obstore_reads.fetch(self._readers, self._window, self._prefix + key, self.uri(key), max_bytes),
            self._translate,
            self.uri,
            self._window,
        )

    def uri(self, key: str) -> str:
        return self.root + key

    def key(self, uri: str) -> str:
        return uri.removeprefix(self.root)

    def _translate(self, error: Exception, where: str) -> StorageError:
        if isinstance(error, ValueError):
            return NotFoundError(f"{where}: a key that cannot be asked for ({error})")
        return translate(error, where, _NAMES[self._scheme])
