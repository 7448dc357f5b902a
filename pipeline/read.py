"""The read stage: a chunk of the manifest becomes one Arrow row that holds the encoded bytes of its images.

One row a chunk, because a row is what Ray Data never splits and never merges with another's fate.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import RejectError, UnavailableError
from pipeline.manifest import ManifestReader
from pipeline.storage import Fetched, open_store, read_judgement

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
        UnavailableError: half of the reads or more failed for reasons of the store; nothing is rejected for that.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    rows = manifest.chunk(shard, chunk)
    uris, etags = rows["uri"].to_pylist(), rows["etag"].to_pylist()
    fetched = _fetch(source, uris, etags, rows["size"].to_pylist(), max_bytes)
    failed = [item for item in fetched if isinstance(item, RejectError) and item.error == "Unavailable"]
    if failed and len(failed) >= _OUTAGE * len(fetched):
        raise UnavailableError(
            f"{len(failed)} of {len(fetched)} reads of chunk {shard}/{chunk} failed; the first: {failed[0].message}"
        )
    return pa.table(
        {
            "shard": [shard],
            "chunk": [chunk],
            "uri": [uris],
            "etag": [etags],
            "data": [[item.data if isinstance(item, Fetched) else None for item in fetched]],
            "reject": [[_as_struct(item) for item in fetched]],
            "read_seconds": [time.perf_counter() - wall],
            "read_cpu_seconds": [time.process_time() - cpu],
        },
        schema=CHUNK_ROW_SCHEMA,
    )


def _fetch(
    source: Store, uris: list[str], etags: list[str], sizes: list[int], max_bytes: int
) -> list[Fetched | RejectError]:
    """Objects whose listed size is over the limit are never asked for."""
    wanted = [index for index, size in enumerate(sizes) if size <= max_bytes]
    answers = source.fetch_many([source.key(uris[index]) for index in wanted], max_bytes)
    result: list[Fetched | RejectError] = [read_judgement("TooManyBytes", uri) for uri in uris]
    for index, answer in zip(wanted, answers, strict=True):
        changed = isinstance(answer, Fetched) and answer.version != etags[index]
        result[index] = read_judgement("Changed", uris[index]) if changed else answer
    return result


def _as_struct(item: Fetched | RejectError) -> dict[str, str] | None:
    if isinstance(item, Fetched):
        return None
    return {"stage": item.stage, "error": item.error, "message": item.message}
