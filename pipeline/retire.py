"""Rows that leave the dataset: a sealed shard is written anew without them, in place.

As with sealing, the rejects go first, under a name of their own, and the feature shard is the commit point; its
metadata says up to which generation rows have left it. Whoever comes second finds that, and changes nothing.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.commit import encode
from pipeline.errors import RaysightError
from pipeline.footer import read_footers
from pipeline.pieces import read_group
from pipeline.seal import NO_REJECTS, digest, features_writer, referred_rejects, rejects_name, set_metadata

if TYPE_CHECKING:
    from pipeline.manifest import Manifest, RetiredRows
    from pipeline.storage import Store


def read_retired(dest: Store, generation: int, part: RetiredRows) -> pa.Table:
    """The rows that leave a shard with a generation: RETIRED_SCHEMA.

    Raises:
        RaysightError: the list is not the one that was committed.
        NotFoundError: it is gone.
    """
    key = schema.retired_rows(generation, part.shard)
    data = dest.get(key)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise RaysightError(f"{dest.uri(key)} is not the one that was committed")
    return pq.read_table(pa.BufferReader(data))


def without(table: pa.Table, retired: pa.Table) -> pa.Table:
    """The rows whose uri is not among those that leave."""
    return table.filter(pc.invert(pc.is_in(table["uri"], value_set=retired["uri"].combine_chunks())))


def unapplied(dest: Store, manifest: Manifest) -> list[RetiredRows]:
    """What the last generation retires and is still in its shard, as the footers say. All shards are sealed."""
    parts = manifest.last.retired
    footers = read_footers(dest, [schema.features_shard(part.shard) for part in parts])
    return [
        part for part, footer in zip(parts, footers, strict=True) if applied_generation(footer) < manifest.last.number
    ]


def applied_generation(footer: pq.FileMetaData) -> int:
    """The generation whose retired rows, like those of all before it, are no longer in the shard."""
    return int(schema.metadata(footer).get("generation", 0))


def retire_rows(dest: Store, generation: int, part: RetiredRows) -> None:
    """Writes a shard anew without the rows that leave it with a generation.

    Can be broken off at any point and called again, also by another process at the same time: the shard is replaced
    only while it is the one that was read. Memory is that of one row group and the shard's rejects.

    Raises:
        RaysightError: the shard does not hold the rows that should leave it.
    """
    key = schema.features_shard(part.shard)
    with tempfile.TemporaryDirectory(prefix="raysight-retire-") as folder:
        old, new = Path(folder) / "old.parquet", Path(folder) / "new.parquet"
        version = dest.get_file(key, old)
        with pq.ParquetFile(old) as file:
            if applied_generation(file.metadata) >= generation:
                return
            before = referred_rejects(file.metadata)
            retired = read_retired(dest, generation, part)
            rejects = _rewrite(dest, file, retired, part.shard, generation, new)
        after = rejects_name(part.shard, rejects) if rejects else None
        if after and after != before:
            dest.put(after, rejects)
        if dest.replace_file(key, new, version) and before and before != after:
            dest.delete([before])


def _rewrite(dest: Store, file: pq.ParquetFile, retired: pa.Table, shard: int, generation: int, path: Path) -> bytes:
    """Writes the feature shard without these rows to a file; returns the rejects shard, empty where none is left."""
    values: dict[str, Any] = schema.metadata(file.metadata)
    key = referred_rejects(file.metadata)
    old = pq.read_table(pa.BufferReader(dest.get(key))) if key else schema.REJECTS_SCHEMA.empty_table()
    rejected = without(old, retired)
    rows = 0
    with features_writer(path, file.schema_arrow.remove_metadata()) as writer:
        for group in range(file.num_row_groups):
            kept = read_group(file, group, lambda rows: without(rows, retired))
            if len(kept):
                writer.write_table(kept, row_group_size=len(kept))
            rows += len(kept)
        left = file.metadata.num_rows + len(old) - rows - len(rejected)
        if left != len(retired):
            raise RaysightError(
                f"{len(retired)} rows should leave shard {shard}, but it holds {left} of them;"
                " raysight verify says what else is wrong with the dataset"
            )
        data = encode(rejected) if len(rejected) else b""
        values |= {
            "rows": rows,
            "rejects": len(rejected),
            "rejects_digest": digest(data) if data else NO_REJECTS,
            "generation": generation,
        }
        set_metadata(writer, values)
    return data
