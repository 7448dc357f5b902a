"""The manifest: what the sources held, cut into shards and chunks, committed by a marker, generation by generation.

A chunk is a row group, a shard a file. Both are fixed once written, so every later output has a name known beforehand.
New rows become new shards; rows that leave the dataset are named in lists of their own. ``pipeline.generation`` writes.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.dataset_format import check_format, format_mark
from pipeline.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class ManifestShard:
    """One shard.

    Attributes:
        chunks: rows of each chunk.
        sha256: of its file.
        source: URI of the prefix or table that its rows were listed from.
        generation: the one that it came with.
    """

    chunks: tuple[int, ...]
    sha256: str
    source: str
    generation: int

    @property
    def rows(self) -> int:
        """Images in the shard when it was written."""
        return sum(self.chunks)


@dataclass(frozen=True, slots=True)
class RetiredRows:
    """Rows of one shard that leave the dataset with one generation: how many, and the SHA-256 of the list's file."""

    shard: int
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What one listing of the sources (or one retry of rejects) brought.

    Attributes:
        number: from 1.
        kind: ``listing`` or ``retry``.
        listed_at: when the listing ended, ISO 8601, UTC.
        limit: only so many objects were taken; None is all.
        sources: URIs of the prefixes and tables that were listed.
        rows: of the shards that it added.
        bytes: encoded size of their images.
        changed: rows that leave because their object has a newer version, a row among the new ones.
        gone: rows that leave because their object is gone.
        retried: rows that leave because their object is tried again, a row among the new ones.
        retired: the rows that leave, shard by shard.
    """

    number: int
    kind: str
    listed_at: str
    limit: int | None
    sources: tuple[str, ...]
    rows: int
    bytes: int
    changed: int = 0
    gone: int = 0
    retried: int = 0
    retired: tuple[RetiredRows, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A committed manifest, without its rows.

    Attributes:
        shards: by number.
        generations: in order; at least one.
    """

    shards: tuple[ManifestShard, ...]
    generations: tuple[Generation, ...]

    @property
    def last(self) -> Generation:
        """The newest generation."""
        return self.generations[-1]

    @property
    def rows(self) -> int:
        """Live images: those listed, without those that have left the dataset since."""
        return sum(shard.rows for shard in self.shards) - self.retired

    @property
    def retired(self) -> int:
        """Rows that have left the dataset, or are about to."""
        return sum(part.rows for generation in self.generations for part in generation.retired)

    @property
    def chunks(self) -> int:
        """Chunks in all."""
        return sum(len(shard.chunks) for shard in self.shards)

    @property
    def sources(self) -> tuple[str, ...]:
        """All that was ever listed, in order."""
        return tuple(dict.fromkeys(source for generation in self.generations for source in generation.sources))

    def live_rows(self) -> list[int]:
        """Live rows of each shard."""
        rows = [shard.rows for shard in self.shards]
        for generation in self.generations:
            for part in generation.retired:
                rows[part.shard] -= part.rows
        return rows

    def retirements(self) -> dict[int, list[tuple[int, RetiredRows]]]:
        """Shard → (generation, what left it), in order; without the shards that nothing has left."""
        found: dict[int, list[tuple[int, RetiredRows]]] = {}
        for generation in self.generations:
            for part in generation.retired:
                found.setdefault(part.shard, []).append((generation.number, part))
        return found

    def to_json(self) -> bytes:
        """What :func:`load_manifest` reads."""
        return json.dumps({**format_mark(), **asdict(self)}).encode()


def load_manifest(dest: Store) -> Manifest | None:
    """The committed manifest of a dataset, or None when no listing was ever finished.

    Raises:
        UsageError: it is damaged, or not of the format that this version reads.
    """
    try:
        data = dest.get(schema.MANIFEST_MARKER)
    except NotFoundError:
        return None
    where = dest.uri(schema.MANIFEST_MARKER)
    try:
        values: dict[str, Any] = json.loads(data)
        check_format(values, where)
        shards = (ManifestShard(**{**shard, "chunks": tuple(shard["chunks"])}) for shard in values["shards"])
        return Manifest(tuple(shards), tuple(_generation(item) for item in values["generations"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{where} is damaged ({type(error).__name__}: {error}); put back a copy of it, or extract into another DEST"
        ) from error


def _generation(values: dict[str, Any]) -> Generation:
    retired = tuple(RetiredRows(**part) for part in values["retired"])
    return Generation(**{**values, "sources": tuple(values["sources"]), "retired": retired})


class ManifestReader:
    """Rows of a manifest, chunk by chunk; keeps the shard read last. Several threads may share one."""

    def __init__(self, dest: Store) -> None:
        self.dest = dest
        self._lock = threading.Lock()
        self._shard = -1
        self._file: pq.ParquetFile | None = None

    def chunk(self, shard: int, chunk: int) -> pa.Table:
        """The rows of one chunk: MANIFEST_SCHEMA, then kept columns. NotFoundError when there is no such shard."""
        with self._lock:
            if self._file is None or shard != self._shard:
                self._file = pq.ParquetFile(pa.BufferReader(self.dest.get(schema.manifest_shard(shard))))
                self._shard = shard
            return self._file.read_row_group(chunk)
