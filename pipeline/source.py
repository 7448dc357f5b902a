"""What there is to extract: the images below a prefix."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from pipeline.decode import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.storage import ObjectInfo, Store


def list_images(store: Store, limit: int | None = None) -> Iterator[ObjectInfo]:
    """Every image below the store's root, by suffix, streamed in the store's order.

    Raises:
        StorageError: the listing failed.
    """
    images = (item for item in store.list_objects() if item.key.lower().endswith(SUFFIXES))
    return images if limit is None else islice(images, limit)
