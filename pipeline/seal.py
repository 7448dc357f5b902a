"""Sealing: when all chunks of a shard are committed, they become one feature shard and one rejects shard.

Rejects go first, under a name that carries a digest of their content; the feature shard records that digest and is
the commit point. Whoever seals second finds it there and changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.commit import encode, parquet_options
from pipeline.errors import NotFoundError, RaysightError
from pipeline.footer import read_footers
from pipeline.pieces import read_group

if TYPE_CHECKING:
    from pipeline.fingerprint import Fingerprint
    from pipeline.manifest import ManifestShard
    from pipeline.storage import Store

NO_REJECTS = ""


def seal_shard(dest: Store, shard: int, listed: ManifestShard, fingerprint: Fingerprint) -> None:
    """Turns the committed chunks of a shard into its feature shard (a row group a chunk) and rejects shard.

    Can be broken off at any point and called again, also by another process at the same time. Memory is that of one
    chunk and the shard's rejects.

    Args:
        dest: the dataset.
        shard: its number.
        listed: what the manifest says of it.
        fingerprint: recorded in the shard.

    Raises:
        RaysightError: a chunk does not have the rows of the manifest.
        NotFoundError: a chunk is not committed.
    """
    if not _is_sealed(dest, shard):
        try:
            _seal(dest, shard, listed, fingerprint)
        except NotFoundError:
            if not _is_sealed(dest, shard):  # else somebody was faster, and has deleted the chunks
                raise
    dest.delete([schema.chunk_object(shard, chunk) for chunk in range(len(listed.chunks))])


def _is_sealed(dest: Store, shard: int) -> bool:
    key = schema.features_shard(shard)
    return any(item.key == key for item in dest.list_objects(key))


def _seal(dest: Store, shard: int, listed: ManifestShard, fingerprint: Fingerprint) -> None:
    with tempfile.TemporaryDirectory(prefix="raysight-seal-") as folder:
        path = Path(folder) / "features.parquet"
        rejects = _write_features(dest, shard, listed, fingerprint, path)
        if rejects:
            dest.put(rejects_name(shard, rejects), rejects)
        dest.put_file(schema.features_shard(shard), path, replace=False)


def _write_features(dest: Store, shard: int, listed: ManifestShard, fingerprint: Fingerprint, path: Path) -> bytes:
    """Writes the feature shard to a file; returns the rejects shard, empty where there are no rejects."""
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        rejects: list[pa.Table] = []
        rows = 0
        for chunk, expected in enumerate(listed.chunks):
            features, rejected = _read_chunk(dest, shard, chunk, expected)
            if writer is None:
                writer = stack.enter_context(features_writer(path, features.schema))
            if len(features):
                writer.write_table(features, row_group_size=len(features))
            rejects.append(rejected)
            rows += len(features)
            del features  # before the next chunk is read
        assert writer is not None, "a shard has at least one chunk"
        rejected = pa.concat_tables(rejects)
        data = encode(rejected) if len(rejected) else b""
        values = {
            "format": schema.FORMAT_VERSION,
            "fingerprint": fingerprint.to_dict(),
            "shard": shard,
            "rows": rows,
            "rejects": len(rejected),
            "rejects_digest": digest(data) if data else NO_REJECTS,
            "generation": listed.generation,
        }
        set_metadata(writer, values)
    return data


def features_writer(path: Path, columns: pa.Schema) -> pq.ParquetWriter:
    """A writer of a feature shard."""
    return pq.ParquetWriter(path, columns, **parquet_options(columns))


def set_metadata(writer: pq.ParquetWriter, values: dict[str, Any]) -> None:
    """Records what a feature shard says of itself."""
    writer.add_key_value_metadata({schema.METADATA_KEY: json.dumps(values, sort_keys=True).encode()})


def _read_chunk(dest: Store, shard: int, chunk: int, expected: int) -> tuple[pa.Table, pa.Table]:
    """The features of a chunk and its rejects."""
    key = schema.chunk_object(shard, chunk)
    file = pq.ParquetFile(pa.BufferReader(dest.get(key)))
    if file.metadata.num_rows != expected:
        raise RaysightError(
            f"{dest.uri(key)} has {file.metadata.num_rows} rows, the manifest {expected}; delete this object and run"
            " again"
        )
    rejects_schema = schema.rejects_schema(schema.kept_fields(file.schema_arrow))
    rejects = file.read(rejects_schema.names)
    return read_group(file, 0, _good), rejects.filter(pc.is_valid(rejects["stage"])).cast(rejects_schema)


def _good(rows: pa.Table) -> pa.Table:
    good = pc.is_null(rows["stage"])
    found = rows if pc.all(good).as_py() else rows.filter(good)
    return found.drop_columns([field.name for field in schema.REJECT_FIELDS])


def rejects_name(shard: int, data: bytes) -> str:
    """Name of a rejects shard with this content."""
    return schema.rejects_shard(shard, digest(data))


def digest(data: bytes) -> str:
    """What stands for the content of a rejects shard in its name: 16 hex digits."""
    return hashlib.sha256(data).hexdigest()[:16]


def clean_up(dest: Store, sealed: set[int]) -> int:
    """Deletes what dead runs left, once all is sealed: late chunks, rejects no shard refers to, half-written files.

    Only for who holds the lease.

    Returns:
        the number of objects deleted.
    """
    chunks = (item.key for item in dest.list_objects(schema.CHUNKS_FOLDER))
    stale = [key for key in chunks if (pair := schema.parse_chunk(key)) and pair[0] in sealed]
    rejects = [(schema.parse_shard(item.key), item.key) for item in dest.list_objects(schema.REJECTS_FOLDER)]
    shards = sorted({shard for shard, _ in rejects if shard is not None and shard in sealed})
    footers = read_footers(dest, [schema.features_shard(shard) for shard in shards])
    kept = {shard: referred_rejects(footer) for shard, footer in zip(shards, footers, strict=True)}
    stale += [key for shard, key in rejects if shard in kept and kept[shard] != key]
    dest.delete(stale)
    swept = sum(dest.sweep(folder) for folder in (schema.ROOT_FOLDER, schema.FEATURES_FOLDER, schema.REJECTS_FOLDER))
    return len(stale) + swept


def referred_rejects(footer: pq.FileMetaData) -> str | None:
    """Name of the rejects shard that a feature shard refers to; None when it had no rejects."""
    values = schema.metadata(footer)
    digest = values.get("rejects_digest", NO_REJECTS)
    return schema.rejects_shard(values["shard"], digest) if digest != NO_REJECTS else None
