"""The read stage: a chunk of the manifest becomes one Arrow row that holds the encoded bytes of its images.

One row a chunk, because a row is what Ray Data never splits and never merges with another's fate.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.counting import CountingStore
from pipeline.errors import RejectError, UnavailableError
from pipeline.manifest import ManifestReader
from pipeline.storage import Fetched, open_store
from pipeline.store import read_judgement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.config import Config
    from pipeline.storage import Store

_REJECT = pa.struct([(name, pa.string()) for name in ("stage", "error", "message")])

CHUNK_ROW_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("chunk", pa.int32()),
        ("uri", pa.list_(pa.string())),
        ("etag", pa.list_(pa.string())),
        ("data", pa.list_(pa.large_binary())),
        ("reject", pa.list_(_REJECT)),
        ("read_seconds", pa.float64()),
        ("read_cpu_seconds", pa.float64()),
        ("requests", pa.map_(pa.string(), pa.int64())),
    ]
)

_OUTAGE = 0.5
"""Fraction of a chunk's reads that must fail for reasons of the store before it counts as an outage."""


def read_chunks(config: Config, shard: int, chunks: Sequence[int]) -> Iterator[pa.Table]:
    """The chunks of one read task, one after another. Raises as :func:`read_chunk`."""
    manifest, source = _stores(config)
    for chunk in chunks:
        yield read_chunk(manifest, source, shard, chunk, config.limits.max_bytes)


@functools.lru_cache(maxsize=4)
def _stores(config: Config) -> tuple[ManifestReader, Store]:
    """Opening a store costs 0.1 s of CPU; a read worker lives for many tasks."""
    return ManifestReader(open_store(config.dest, config.storage)), open_store(config.source, config.storage)


def read_chunk(manifest: ManifestReader, source: Store, shard: int, chunk: int, max_bytes: int) -> pa.Table:
    """Fetches one chunk.

    Returns:
        one row of :data:`CHUNK_ROW_SCHEMA`; ``data[i]`` is null exactly where ``reject[i]`` is not.

    Raises:
        StorageError: the store is down, or half of the reads or more failed for its reasons; no image is rejected then.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    listed = manifest.chunk(shard, chunk).to_pylist()
    counted = CountingStore(source)
    fetched = _fetch_all(counted, listed, max_bytes, f"chunk {shard}/{chunk}")
    return pa.table(
        {
            "shard": [shard],
            "chunk": [chunk],
            "uri": [[row["uri"] for row in listed]],
            "etag": [[row["etag"] for row in listed]],
            "data": [[item.data if isinstance(item, Fetched) else None for item in fetched]],
            "reject": [[_as_struct(item) for item in fetched]],
            "read_seconds": [time.perf_counter() - wall],
            "read_cpu_seconds": [time.process_time() - cpu],
            "requests": [sorted(counted.take().items())],
        },
        schema=CHUNK_ROW_SCHEMA,
    )


def _fetch_all(source: Store, listed: list[dict[str, Any]], max_bytes: int, what: str) -> list[Fetched | RejectError]:
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


def _fetch(source: Store, listed: list[dict[str, Any]], max_bytes: int) -> list[Fetched | RejectError]:
    """Objects whose listed size is over the limit are never asked for."""
    answers = iter(source.fetch_many([source.key(row["uri"]) for row in listed if row["size"] <= max_bytes], max_bytes))
    result: list[Fetched | RejectError] = []
    for row in listed:
        answer = next(answers) if row["size"] <= max_bytes else read_judgement("TooManyBytes", row["uri"])
        changed = isinstance(answer, Fetched) and answer.version != row["etag"]
        result.append(read_judgement("Changed", row["uri"]) if changed else answer)
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
