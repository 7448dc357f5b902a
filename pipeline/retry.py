"""``retry-rejects``: the rejected rows become a new generation, and leave the rejects when that is sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import NotFoundError
from pipeline.footer import read_footer
from pipeline.generation import Listing, write_generation
from pipeline.retire import read_retired, without
from pipeline.seal import referred_rejects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.cut import Cut
    from pipeline.manifest import Manifest
    from pipeline.storage import ObjectInfo, Store


def retry_rejects(
    dest: Store,
    manifest: Manifest,
    cut: Cut,
    look_up: Callable[[str, Sequence[str]], list[ObjectInfo | None]],
    say: Callable[[str], None],
) -> Manifest:
    """Commits a generation of all rejected rows, or gives the same manifest back when there are none.

    Args:
        dest: the dataset, settled.
        manifest: its manifest.
        cut: bounds of new chunks and shards.
        look_up: what is known today of the objects of a source with these URIs. One that is not there keeps the
            version it was listed with, and is rejected again.
        say: prints a line.
    """
    named = {schema.parse_shard(item.key) for item in dest.list_objects(schema.REJECTS_FOLDER)}
    shards = sorted(shard for shard in named if shard is not None)
    held = [shard for shard in shards if len(_rejected(dest, shard))]
    if not held:
        say("no row was rejected; there is nothing to retry")
        return manifest
    sources = tuple(dict.fromkeys(manifest.shards[shard].source for shard in held))

    def rows() -> Iterator[tuple[str, pa.RecordBatch]]:
        for shard in held:
            source = manifest.shards[shard].source
            listed = _live(dest, manifest, shard)
            table = listed.filter(pc.is_in(listed["uri"], value_set=_rejected(dest, shard)["uri"].combine_chunks()))
            for batch in _renewed(table, look_up(source, table["uri"].to_pylist())).to_batches():
                yield source, batch

    def retired() -> Iterator[tuple[int, pa.Table]]:
        for shard in held:
            table = _rejected(dest, shard).select(["uri", "etag"])
            yield shard, table.append_column("reason", pa.repeat("retried", len(table))).cast(schema.RETIRED_SCHEMA)

    new = write_generation(dest, manifest, Listing(sources, kind="retry"), rows(), cut, retired=retired())
    say(f"{new.last.rows:,} rejected rows to try again")
    return new


def kept_columns(dest: Store) -> list[pa.Field]:
    """The kept columns of a dataset, as its manifest has them."""
    try:
        data = dest.get(schema.manifest_shard(0))
    except NotFoundError:
        return []
    return list(schema.kept_fields(pq.read_schema(pa.BufferReader(data))))


def _rejected(dest: Store, shard: int) -> pa.Table:
    """The rejects of a sealed shard."""
    key = referred_rejects(read_footer(dest, schema.features_shard(shard)))
    return pq.read_table(pa.BufferReader(dest.get(key))) if key else schema.REJECTS_SCHEMA.empty_table()


def _live(dest: Store, manifest: Manifest, shard: int) -> pa.Table:
    table = pq.read_table(pa.BufferReader(dest.get(schema.manifest_shard(shard))))
    for number, part in manifest.retirements().get(shard, []):
        table = without(table, read_retired(dest, number, part))
    return table


def _renewed(table: pa.Table, found: list[ObjectInfo | None]) -> pa.Table:
    """The rows with size and version as they are today."""
    known = [info if info is not None and info.seen else None for info in found]
    sizes = [info.size if info else size for info, size in zip(known, table["size"].to_pylist(), strict=True)]
    etags = [info.version if info else etag for info, etag in zip(known, table["etag"].to_pylist(), strict=True)]
    for name, values in (("size", sizes), ("etag", etags)):
        index = table.schema.get_field_index(name)
        field = table.schema.field(index)
        table = table.set_column(index, field, pa.array(values, field.type))
    return table.combine_chunks()
