"""The manifest: the source listed once, cut into shards and chunks, committed by a marker.

A chunk is a row group, a shard a file. Both are fixed here, so every later output has a name known beforehand.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipeline.storage import ObjectInfo, Store


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the manifest is cut.

    Attributes:
        chunk_rows: images in a chunk at most.
        chunk_bytes: encoded bytes in a chunk at most (an image larger than that makes a chunk of its own).
        shard_rows: images in a shard at most.
    """

    chunk_rows: int
    chunk_bytes: int
    shard_rows: int


@dataclass(frozen=True, slots=True)
class ManifestShard:
    """One shard: rows of each of its chunks, and the SHA-256 of its file."""

    chunks: tuple[int, ...]
    sha256: str

    @property
    def rows(self) -> int:
        """Images in the shard."""
        return sum(self.chunks)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A committed manifest, without its rows.

    Attributes:
        source: URI of the prefix that was listed.
        limit: only so many objects were taken; None is all.
        listed_at: when the listing ended, ISO 8601, UTC.
        bytes: encoded size of all images.
        shards: by number.
    """

    source: str
    limit: int | None
    listed_at: str
    bytes: int
    shards: tuple[ManifestShard, ...]

    @property
    def rows(self) -> int:
        """Images in all."""
        return sum(shard.rows for shard in self.shards)

    @property
    def chunks(self) -> int:
        """Chunks in all."""
        return sum(len(shard.chunks) for shard in self.shards)


def load_manifest(dest: Store) -> Manifest | None:
    """The committed manifest of a dataset, or None when no listing was ever finished."""
    try:
        values: dict[str, Any] = json.loads(dest.get(schema.MANIFEST_MARKER))
    except NotFoundError:
        return None
    shards = tuple(ManifestShard(tuple(shard["chunks"]), shard["sha256"]) for shard in values.pop("shards"))
    return Manifest(**values, shards=shards)


def write_manifest(
    dest: Store,
    source: str,
    objects: Iterable[ObjectInfo],
    to_uri: Callable[[str], str],
    cut: Cut,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Writes the shards as the listing streams by, then the marker. Memory is that of one shard.

    What an unfinished listing left behind is overwritten or deleted; without its marker nobody reads it.

    Args:
        dest: the dataset.
        source: URI of what is listed.
        objects: the listing.
        to_uri: key to URI.
        cut: bounds of chunks and shards.
        limit: recorded in the manifest.
        progress: called with the number of images so far, now and then.

    Raises:
        StorageError: listing or writing failed; running again starts the listing over.
    """
    shards: list[ManifestShard] = []
    total = size = 0
    for chunks in _cut_shards(objects, cut):
        key = schema.manifest_shard(len(shards))
        data = _encode(chunks, to_uri)
        dest.put(key, data)
        shards.append(ManifestShard(tuple(map(len, chunks)), hashlib.sha256(data).hexdigest()))
        total += shards[-1].rows
        size += sum(item.size for chunk in chunks for item in chunk)
        progress(total)
    kept = {schema.manifest_shard(number) for number in range(len(shards))}
    leftovers = [
        item.key
        for item in dest.list_objects(schema.MANIFEST_FOLDER)
        if item.key not in kept and schema.parse_shard(item.key) is not None
    ]
    if leftovers:
        dest.delete(leftovers)
    listed_at = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(source=source, limit=limit, listed_at=listed_at, bytes=size, shards=tuple(shards))
    dest.put(schema.MANIFEST_MARKER, json.dumps(asdict(manifest)).encode())
    return manifest


def _cut_shards(objects: Iterable[ObjectInfo], cut: Cut) -> Iterable[list[list[ObjectInfo]]]:
    """Shards, each a list of chunks; no shard and no chunk is empty."""
    chunks: list[list[ObjectInfo]] = []
    rows = 0
    for chunk in _cut_chunks(objects, cut):
        if chunks and rows + len(chunk) > cut.shard_rows:
            yield chunks
            chunks, rows = [], 0
        chunks.append(chunk)
        rows += len(chunk)
    if chunks:
        yield chunks


def _cut_chunks(objects: Iterable[ObjectInfo], cut: Cut) -> Iterable[list[ObjectInfo]]:
    chunk: list[ObjectInfo] = []
    size = 0
    for item in objects:
        if chunk and (len(chunk) >= min(cut.chunk_rows, cut.shard_rows) or size + item.size > cut.chunk_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += item.size
    if chunk:
        yield chunk


def _encode(chunks: list[list[ObjectInfo]], to_uri: Callable[[str], str]) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema.MANIFEST_SCHEMA, compression="zstd") as writer:
        for chunk in chunks:
            table = pa.table(
                {
                    "uri": [to_uri(item.key) for item in chunk],
                    "size": [item.size for item in chunk],
                    "etag": [item.version for item in chunk],
                },
                schema=schema.MANIFEST_SCHEMA,
            )
            writer.write_table(table, row_group_size=len(chunk))
    return buffer.getvalue()


class ManifestReader:
    """Rows of a manifest, chunk by chunk; keeps the shard read last. Several threads may share one."""

    def __init__(self, dest: Store) -> None:
        self._dest = dest
        self._lock = threading.Lock()
        self._shard = -1
        self._file: pq.ParquetFile | None = None

    def chunk(self, shard: int, chunk: int) -> pa.Table:
        """The rows of one chunk, with the manifest's schema. Raises NotFoundError when there is no such shard."""
        with self._lock:
            if self._file is None or shard != self._shard:
                self._file = pq.ParquetFile(pa.BufferReader(self._dest.get(schema.manifest_shard(shard))))
                self._shard = shard
            return self._file.read_row_group(chunk)
