"""Parquet footers without the data: one small read from the end of each object."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.storage import Store

_TAIL_BYTES = 64 << 10  # holds the footer of a shard of about a hundred row groups
_TRAILER_BYTES = 8  # the footer's length (4 bytes, little endian), then "PAR1"
_THREADS = 16


def read_footer(store: Store, key: str) -> pq.FileMetaData:
    """The footer of one object.

    Raises:
        NotFoundError: there is no such object.
        pyarrow.ArrowInvalid: it is not Parquet.
    """
    tail = store.get_tail(key, _TAIL_BYTES)
    needed = int.from_bytes(tail[-_TRAILER_BYTES:-4], "little") + _TRAILER_BYTES
    if len(tail) == _TAIL_BYTES and needed > _TAIL_BYTES:
        tail = store.get_tail(key, needed)
    return pq.read_metadata(pa.BufferReader(tail))


def read_footers(store: Store, keys: Sequence[str]) -> list[pq.FileMetaData]:
    """The footers of many objects, in order, several at once. Raises as :func:`read_footer`."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda key: read_footer(store, key), keys))
