"""The read stage: a chunk of the manifest becomes one Arrow row that holds the encoded bytes of its images.

One row a chunk, because a row is what Ray Data never splits and never merges with another's fate.
"""

from __future__ import annotations

import functools
import io
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline import schema
from pipeline.counting import CountingFetcher
from pipeline.errors import RejectError, UnavailableError
from pipeline.judgement import rejection
from pipeline.located import Located
from pipeline.manifest import ManifestReader
from pipeline.origin import roots
from pipeline.refused import check_refused
from pipeline.storage import Fetched, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.config import Config
    from pipeline.store import Fetcher

_REJECT = pa.struct([(name, pa.string()) for name in ("stage", "error", "message")])

CHUNK_ROW_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("chunk", pa.int32()),
        ("uri", pa.list_(pa.string())),
        ("etag", pa.list_(pa.string())),
        ("kept", pa.large_binary()),
        ("data", pa.list_(pa.large_binary())),
        ("reject", pa.list_(_REJECT)),
        ("size", pa.list_(pa.list_(pa.int32(), 2))),
        ("shape", pa.list_(pa.int32())),
        ("pixels", pa.large_binary()),
        ("bytes_read", pa.int64()),
        ("prepare_seconds", pa.float64()),
        ("prepare_cpu_seconds", pa.float64()),
        ("read_seconds", pa.float64()),
        ("read_cpu_seconds", pa.float64()),
        ("requests", pa.map_(pa.string(), pa.int64())),
    ]
)
"""One chunk. ``pipeline.chunkrow.decode_row`` sets ``size``, ``shape`` and ``pixels``: width and height of each image
that is decoded, the shape of a model's input and, one after another, the pixels themselves."""


_OUTAGE = 0.5
"""Fraction of a chunk's reads that must fail for reasons of the store before it counts as an outage."""


def read_chunks(config: Config, source: str, shard: int, chunks: Sequence[int]) -> Iterator[pa.Table]:
    """The chunks of one read task, all of one source, one after another. Raises as :func:`read_chunk`."""
    manifest, store = _stores(config, source)
    for chunk in chunks:
        yield read_chunk(manifest, store, shard, chunk, config.limits.max_bytes)


@functools.lru_cache(maxsize=4)
def _stores(config: Config, source: str) -> tuple[ManifestReader, Located]:
    """Opening a store costs 0.1 s of CPU; a read worker lives for many tasks."""
    return ManifestReader(open_store(config.dest, config.storage)), Located(roots((source,)), config.storage)


def read_chunk(manifest: ManifestReader, source: Fetcher, shard: int, chunk: int, max_bytes: int) -> pa.Table:
    """Fetches one chunk.

    Returns:
        one row of :data:`CHUNK_ROW_SCHEMA`, nothing decoded; ``data[i]`` is null exactly where ``reject[i]`` is not.

    Raises:
        StorageError: the store is down, does not take the credentials, lets nothing be read, or failed with half of the
            reads or more; no image is rejected then.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    rows = manifest.chunk(shard, chunk)
    listed = rows.select(schema.MANIFEST_SCHEMA.names).to_pylist()
    counted = CountingFetcher(source)
    fetched = _fetch_all(counted, listed, max_bytes, f"chunk {shard}/{chunk}")
    check_refused(manifest, counted, shard, fetched)
    return pa.table(
        {
            "shard": [shard],
            "chunk": [chunk],
            "uri": [[row["uri"] for row in listed]],
            "etag": [[row["etag"] for row in listed]],
            "kept": [_pack(rows.select([field.name for field in schema.kept_fields(rows.schema)]))],
            "data": [[item.data if isinstance(item, Fetched) else None for item in fetched]],
            "reject": [[_as_struct(item) for item in fetched]],
            "size": [[None] * len(fetched)],
            "shape": [None],
            "pixels": [None],
            "bytes_read": [sum(len(item.data) for item in fetched if isinstance(item, Fetched))],
            "prepare_seconds": [0.0],
            "prepare_cpu_seconds": [0.0],
            "read_seconds": [time.perf_counter() - wall],
            "read_cpu_seconds": [time.process_time() - cpu],
            "requests": [sorted(counted.take().items())],
        },
        schema=CHUNK_ROW_SCHEMA,
    )


def _pack(kept: pa.Table) -> bytes | None:
    """Columns of whatever types as one value, since a chunk is one row; None where there are none."""
    if not kept.num_columns:
        return None
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, kept.schema) as writer:
        writer.write_table(kept)
    return buffer.getvalue()


def kept_columns(row: pa.Table) -> pa.Table | None:
    """The columns kept of the source's table, a row for each image of a chunk; None where there are none."""
    data = row["kept"][0]
    return pa.ipc.open_stream(data.as_buffer()).read_all() if data.is_valid else None


def _fetch_all(source: Fetcher, listed: list[dict[str, Any]], max_bytes: int, what: str) -> list[Fetched | RejectError]:
    """Fetches once, and what the store failed to deliver once more: an outage may begin or end within a chunk."""
    answers = _fetch(source, listed, max_bytes)
    failed = _unavailable(answers)
    if not failed:
        return answers
    for index, answer in zip(failed, _fetch(source, [listed[index] for index in failed], max_bytes), strict=True):
        answers[index] = answer
    if failed := _unavailable(answers):
        source.check()
        if len(failed) >= _OUTAGE * len(answers):
            first = next(iter(failed.values()))
            raise UnavailableError(f"{len(failed)} of {len(answers)} reads of {what} failed: {first.message}")
    return answers


def _fetch(source: Fetcher, listed: list[dict[str, Any]], max_bytes: int) -> list[Fetched | RejectError]:
    """Objects whose listed size is over the limit are never asked for."""
    answers = iter(source.fetch_many([source.key(row["uri"]) for row in listed if row["size"] <= max_bytes], max_bytes))
    result: list[Fetched | RejectError] = []
    for row in listed:
        answer = next(answers) if row["size"] <= max_bytes else rejection("TooManyBytes", row["uri"])
        changed = isinstance(answer, Fetched) and answer.version != row["etag"]
        result.append(rejection("Changed", row["uri"]) if changed else answer)
    return result


def _unavailable(answers: list[Fetched | RejectError]) -> dict[int, RejectError]:
    return {
        index: answer
        for index, answer in enumerate(answers)
        if isinstance(answer, RejectError) and answer.error == "Unavailable"
    }


def _as_struct(item: Fetched | RejectError) -> dict[str, str] | None:
    if isinstance(item, Fetched):
        return None
    return {"stage": item.stage, "error": item.error, "message": item.message}
