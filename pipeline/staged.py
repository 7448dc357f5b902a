"""A listing written down in a local Parquet file, its rows numbered, to be compared with a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_BATCH_ROWS = 65_536

# Names that no kept column has.
ROW, ORIGIN = "raysight_row", "raysight_origin"
_OWN = {*schema.MANIFEST_SCHEMA.names, ROW, ORIGIN}


@dataclass(frozen=True, slots=True)
class Staged:
    """What was written down.

    Attributes:
        path: the file. Beside the listing's columns it has ``ROW``, counted from 0, and ``ORIGIN``, a place in
            ``sources``.
        rows: how many.
        sources: those that hold anything, in the order of the listing.
    """

    path: Path
    rows: int
    sources: tuple[str, ...]

    @property
    def kept(self) -> list[str]:
        """The columns that the listing carries along."""
        return kept_columns(self.path)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order; no batch is empty."""
        with pq.ParquetFile(self.path) as file:
            yield from (batch for batch in file.iter_batches(_BATCH_ROWS) if len(batch))


def stage(path: Path, rows: Iterable[tuple[str, pa.RecordBatch]], progress: Callable[[int], None]) -> Staged:
    """Writes the listing down.

    Args:
        path: of the file.
        rows: (source, batch of MANIFEST_SCHEMA and kept columns) as listed.
        progress: is called with the number of rows so far, batch by batch.
    """
    total = 0
    sources: list[str] = []
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.RecordBatch] = []
    try:
        for source, batch in rows:
            if source not in sources:
                sources.append(source)
            numbered = batch.append_column(ROW, pa.array(range(total, total + len(batch)), pa.int64()))
            origin = pa.repeat(pa.scalar(sources.index(source), pa.int32()), len(batch))
            numbered = numbered.append_column(ORIGIN, origin)
            writer = writer or pq.ParquetWriter(path, numbered.schema, compression="zstd")
            waiting.append(numbered)
            total += len(batch)
            if sum(map(len, waiting)) >= _BATCH_ROWS:
                _write_group(writer, waiting)
            progress(total)
        if writer is not None:
            _write_group(writer, waiting)
        else:
            columns = [*schema.MANIFEST_SCHEMA, pa.field(ROW, pa.int64()), pa.field(ORIGIN, pa.int32())]
            writer = pq.ParquetWriter(path, pa.schema(columns))
    finally:
        if writer is not None:
            writer.close()
    return Staged(path, total, tuple(sources))


def kept_columns(path: Path) -> list[str]:
    """Columns of a listing or of a manifest shard that are the user's."""
    return [name for name in pq.read_schema(path).names if name not in _OWN]


def _write_group(writer: pq.ParquetWriter, waiting: list[pa.RecordBatch]) -> None:
    """Writes batches as one row group, each of which costs the writer some KiB until it is closed."""
    if waiting:
        table = pa.Table.from_batches(waiting)
        writer.write_table(table, row_group_size=len(table))
        waiting.clear()
