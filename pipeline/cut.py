"""Where a listing is cut into shards and chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the manifest is cut.

    Attributes:
        chunk_rows: images in a chunk at most.
        chunk_bytes: encoded bytes in a chunk at most (an image larger than that makes a chunk of its own).
        shard_rows: images in a shard at most.
        shard_chunks: chunks in a shard at most; each is a row group of two files, whose footers a reader holds.
    """

    chunk_rows: int
    chunk_bytes: int
    shard_rows: int
    shard_chunks: int = 1024


def cut_shards(rows: Iterable[tuple[str, pa.RecordBatch]], cut: Cut) -> Iterator[tuple[str, list[pa.Table]]]:
    """Shards, each the source of its rows and its chunks; no shard and no chunk is empty, and none mixes sources.

    Args:
        rows: (source, rows of it with a column ``size``), in order.
        cut: the bounds.
    """
    shard: list[pa.Table] = []
    size, source = 0, ""
    for origin, chunk in _cut_chunks(rows, cut):
        full = size + len(chunk) > cut.shard_rows or len(shard) == cut.shard_chunks
        if shard and (full or origin != source):
            yield source, shard
            shard, size = [], 0
        source = origin
        shard.append(chunk)
        size += len(chunk)
    if shard:
        yield source, shard


def _cut_chunks(rows: Iterable[tuple[str, pa.RecordBatch]], cut: Cut) -> Iterator[tuple[str, pa.Table]]:
    """Chunks as long as the bounds allow; what a batch leaves over goes before the next one of its source."""
    rest: pa.Table | None = None
    source = ""
    for origin, batch in rows:
        if rest is not None and len(rest) and origin != source:
            yield source, rest
            rest = None
        source = origin
        table = pa.Table.from_batches([batch])
        rest = table if rest is None or not len(rest) else pa.concat_tables([rest, table])
        while (end := _first_chunk(rest, cut)) < len(rest):
            yield source, rest.slice(0, end).combine_chunks()
            rest = rest.slice(end)
        rest = rest.combine_chunks()
    if rest is not None and len(rest):
        yield source, rest


def _first_chunk(table: pa.Table, cut: Cut) -> int:
    """How many of the first rows make a chunk; all of them where the next ones may still belong to it."""
    most = min(cut.chunk_rows, cut.shard_rows)
    sizes = table["size"].slice(0, most + 1).to_numpy()
    fitting = int(np.searchsorted(np.cumsum(sizes.clip(0)), cut.chunk_bytes, side="right"))
    return min(max(fitting, 1), most)
