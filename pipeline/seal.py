"""Sealing: when all chunks of a shard are committed, they become one feature shard and one rejects shard.

Rejects go first, under a name that carries a digest of their content; the feature shard records that digest and is
the commit point. Whoever seals second finds it there and changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.commit import encode
from pipeline.errors import RaysightError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.fingerprint import Fingerprint
    from pipeline.storage import Store

NO_REJECTS = ""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a sealed shard holds."""

    shard: int
    rows: int
    rejects: int


def seal_shard(dest: Store, shard: int, chunks: Sequence[int], fingerprint: Fingerprint) -> Sealed:
    """Turns the committed chunks of a shard into its feature shard (a row group a chunk) and rejects shard.

    Memory is that of one chunk and the shard's rejects.

    Args:
        dest: the dataset.
        shard: its number.
        chunks: rows of each chunk, as the manifest has them.
        fingerprint: recorded in the shard.

    Raises:
        RaysightError: a chunk does not have the rows of the manifest.
    """
    with tempfile.TemporaryDirectory(prefix="raysight-seal-") as folder:
        path = Path(folder) / "features.parquet"
        rejects, rows = _write_features(dest, shard, chunks, fingerprint, path)
        if len(rejects):
            data = encode(rejects)
            dest.put(schema.rejects_shard(shard, _digest(data)), data)
        dest.put_file(schema.features_shard(shard), path, replace=False)
    dest.delete([schema.chunk_object(shard, chunk) for chunk in range(len(chunks))])
    return Sealed(shard, rows, len(rejects))


def _write_features(
    dest: Store, shard: int, chunks: Sequence[int], fingerprint: Fingerprint, path: Path
) -> tuple[pa.Table, int]:
    writer: pq.ParquetWriter | None = None
    rejects: list[pa.Table] = []
    rows = 0
    try:
        for chunk, expected in enumerate(chunks):
            table = pq.read_table(pa.BufferReader(dest.get(schema.chunk_object(shard, chunk))))
            if len(table) != expected:
                raise RaysightError(
                    f"{dest.uri(schema.chunk_object(shard, chunk))} has {len(table)} rows, the manifest {expected};"
                    " delete this object and run again"
                )
            good = pc.is_null(table["stage"])
            features = table.filter(good).drop_columns([field.name for field in schema.REJECT_FIELDS])
            if writer is None:
                writer = pq.ParquetWriter(path, features.schema, compression="none", use_dictionary=False)
            if len(features):
                writer.write_table(features, row_group_size=len(features))
            rejects.append(table.filter(pc.invert(good)).select(schema.REJECTS_SCHEMA.names))
            rows += len(features)
        assert writer is not None, "a shard has at least one chunk"
        rejected = pa.concat_tables(rejects).cast(schema.REJECTS_SCHEMA)
        digest = _digest(encode(rejected)) if len(rejected) else NO_REJECTS
        values = {
            "format": schema.FORMAT_VERSION,
            "fingerprint": fingerprint.to_dict(),
            "shard": shard,
            "rows": rows,
            "rejects": len(rejected),
            "rejects_digest": digest,
        }
        writer.add_key_value_metadata({schema.METADATA_KEY: json.dumps(values, sort_keys=True).encode()})
    finally:
        if writer is not None:
            writer.close()
    return rejected, rows


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def clean_up(dest: Store, sealed: set[int]) -> int:
    """Deletes what late writers of dead runs left: chunks of sealed shards, and rejects no feature shard refers to.

    Returns:
        the number of objects deleted.
    """
    chunks = (item.key for item in dest.list_objects(schema.CHUNKS_FOLDER))
    stale = [key for key in chunks if (pair := schema.parse_chunk(key)) and pair[0] in sealed]
    rejects: dict[int, list[str]] = defaultdict(list)
    for item in dest.list_objects(schema.REJECTS_FOLDER):
        shard = schema.parse_shard(item.key)
        if shard is not None and shard in sealed:
            rejects[shard].append(item.key)
    for shard, keys in rejects.items():
        if len(keys) > 1:
            kept = referred_rejects(dest, shard)
            stale.extend(key for key in keys if key != kept)
    if stale:
        dest.delete(stale)
    return len(stale)


def referred_rejects(dest: Store, shard: int) -> str | None:
    """Name of the rejects shard that a sealed feature shard refers to; None when it had no rejects."""
    file = pq.ParquetFile(pa.BufferReader(dest.get(schema.features_shard(shard))))
    digest = schema.metadata(file)["rejects_digest"]
    return schema.rejects_shard(shard, digest) if digest != NO_REJECTS else None
