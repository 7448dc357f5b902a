"""Tables in pieces of a few MiB, so that what Arrow needs beside a wide column stays small.

Parquet's reader and writer, and a filter, take a column piece by piece, and for each number of a piece some 12 bytes of
levels, pointers or indices beside the number itself: six times the memory of what is float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow.parquet as pq

_PIECE_BYTES = 1 << 20


def in_pieces(table: pa.Table) -> pa.Table:
    """The same table in pieces, without a copy."""
    rows = _piece_rows(len(table), table.nbytes)
    return pa.concat_tables([table.slice(start, rows) for start in range(0, max(1, len(table)), rows)])


def read_group(file: pq.ParquetFile, group: int, change: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """A row group, read in pieces, each of them changed on the way."""
    return pa.concat_tables([change(piece) for piece in group_pieces(file, group)])


def group_pieces(file: pq.ParquetFile, group: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A row group, or some columns of it, piece by piece."""
    listed = file.metadata.row_group(group)
    rows = _piece_rows(listed.num_rows, listed.total_byte_size)
    for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
        yield pa.Table.from_batches([batch])


def _piece_rows(rows: int, size: int) -> int:
    return max(1, min(rows, rows * _PIECE_BYTES // max(1, size)))
