"""What there is to extract: the images below a prefix."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import schema
from pipeline.decode import SUFFIXES
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.storage import ObjectInfo, Store

_BATCH_ROWS = 1000  # a page of S3


def list_images(store: Store, limit: int | None = None) -> Iterator[ObjectInfo]:
    """Every image below the store's root, by suffix, streamed in the store's order.

    Raises:
        StorageError: the listing failed.
    """
    images = (item for item in store.list_objects() if item.key.lower().endswith(SUFFIXES))
    return images if limit is None else islice(images, limit)


def list_rows(store: Store, limit: int | None = None) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The images below the store's root as rows of the manifest: (source, batch of MANIFEST_SCHEMA), streamed.

    Raises as :func:`list_images`.
    """
    images = list_images(store, limit)
    while batch := list(islice(images, _BATCH_ROWS)):
        columns = [
            [store.uri(item.key) for item in batch],
            [item.size for item in batch],
            [item.version for item in batch],
        ]
        yield store.root, pa.record_batch(columns, schema=schema.MANIFEST_SCHEMA)


def require_images(store: Store) -> None:
    """Makes sure that there is something to extract, before anything is written or started.

    Raises:
        UsageError: the place does not exist, or no name there is an image's.
        StorageError: the listing failed.
    """
    store.check()
    if next(iter(list_images(store)), None) is None:
        raise UsageError(f"{store.root} holds no image: no name there ends in {', '.join(SUFFIXES)}")
