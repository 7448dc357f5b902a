"""Writes one generation of the manifest: new shards, lists of rows that leave, and the marker that commits both."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.cut import Cut, cut_shards
from pipeline.manifest import Generation, Manifest, ManifestShard, RetiredRows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class Listing:
    """How a generation came about: ``listing`` or ``retry``, of which sources, and how many objects at most."""

    sources: tuple[str, ...]
    limit: int | None = None
    kind: str = "listing"


def write_generation(
    dest: Store,
    previous: Manifest | None,
    listing: Listing,
    rows: Iterable[tuple[str, pa.RecordBatch]],
    cut: Cut,
    *,
    retired: Iterable[tuple[int, pa.Table]] = (),
) -> Manifest:
    """Writes the shards as the rows stream by, then the lists of rows that leave, then the marker.

    Memory is that of one shard. What an unfinished generation left behind is overwritten or deleted; without the
    marker nobody reads it. Files of earlier generations are never touched.

    Args:
        dest: the dataset; its rows are settled when there are retired ones.
        previous: its manifest so far.
        listing: recorded in the manifest.
        rows: (source, batch of MANIFEST_SCHEMA and kept columns), in order.
        cut: bounds of chunks and shards.
        retired: (shard, table of RETIRED_SCHEMA), each shard once.

    Raises:
        StorageError: listing or writing failed; running again starts this generation over.
    """
    number = previous.last.number + 1 if previous else 1
    old = previous.shards if previous else ()
    new: list[ManifestShard] = []
    total = size = 0
    for source, chunks in cut_shards(rows, cut):
        data = _encode(chunks)
        dest.put(schema.manifest_shard(len(old) + len(new)), data)
        new.append(ManifestShard(tuple(map(len, chunks)), hashlib.sha256(data).hexdigest(), source, number))
        total += new[-1].rows
        size += sum(pc.sum(chunk["size"]).as_py() for chunk in chunks)
    reasons: Counter[str] = Counter()
    parts: list[RetiredRows] = []
    for shard, table in retired:
        data = _encode([table])
        dest.put(schema.retired_rows(number, shard), data)
        parts.append(RetiredRows(shard, len(table), hashlib.sha256(data).hexdigest()))
        reasons.update(table["reason"].to_pylist())
    generation = Generation(
        number=number,
        kind=listing.kind,
        listed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        limit=listing.limit,
        sources=listing.sources,
        rows=total,
        bytes=size,
        changed=reasons["changed"],
        gone=reasons["gone"],
        retried=reasons["retried"],
        retired=tuple(parts),
    )
    manifest = Manifest((*old, *new), (*(previous.generations if previous else ()), generation))
    if leftovers := list(_leftovers(dest, manifest)):
        dest.delete(leftovers)
    dest.put(schema.MANIFEST_MARKER, manifest.to_json())
    return manifest


def _leftovers(dest: Store, manifest: Manifest) -> Iterator[str]:
    shards = range(len(manifest.shards))
    lists = {(item.number, part.shard) for item in manifest.generations for part in item.retired}
    for item in dest.list_objects(schema.MANIFEST_FOLDER):
        shard, pair = schema.parse_shard(item.key), schema.parse_retired(item.key)
        if (shard is not None and shard not in shards) or (pair is not None and pair not in lists):
            yield item.key


def _encode(groups: list[pa.Table]) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, groups[0].schema, compression="zstd") as writer:
        for group in groups:
            writer.write_table(group, row_group_size=len(group))
    return buffer.getvalue()
