"""A source that lets nothing be read: told from objects that are forbidden one by one.

Every store answers alike for an object with a list of readers of its own and for credentials that may read nothing.
A chunk in which nothing may be read is no proof of the latter, since a folder can be forbidden; so others are tried.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import ForbiddenError, RejectError
from pipeline.manifest import load_manifest
from pipeline.storage import scheme

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.manifest import ManifestReader
    from pipeline.store import Fetched, Fetcher

_TRIED = 32
"""Objects that are tried, spread over all that was listed of the source."""


def check_refused(
    manifest: ManifestReader, source: Fetcher, shard: int, answers: Sequence[Fetched | RejectError]
) -> None:
    """Looks whether it is for the images that none of a chunk may be read.

    Args:
        manifest: where the others are.
        source: of the chunk.
        shard: of the chunk.
        answers: to the reads of the chunk; nothing is asked unless all of them are ``Forbidden``.

    Raises:
        ForbiddenError: none of the others may be read either, and so no image must be rejected for it.
    """
    if not all(map(_forbidden, answers)):
        return
    others = [uri for uri in _spread(manifest, shard) if scheme(uri) not in ("http", "https")]  # each server for itself
    tried = source.fetch_many([source.key(uri) for uri in others], 0)  # what is too large for that may be read
    if len(others) > 1 and all(map(_forbidden, tried)):
        first = next(answer for answer in tried if isinstance(answer, RejectError))
        raise ForbiddenError(
            f"not one of {len(others)} images, from all over the source, may be read: {first.message}. To leave out"
            " what is not to be read: --exclude, and another DEST"
        )


def _forbidden(answer: Fetched | RejectError) -> bool:
    return isinstance(answer, RejectError) and answer.error == "Forbidden"


@functools.lru_cache(maxsize=4)
def _spread(reader: ManifestReader, shard: int) -> tuple[str, ...]:
    """URIs, evenly from all shards that have the source of this one."""
    manifest = load_manifest(reader.dest)
    assert manifest is not None
    source = manifest.shards[shard].source
    found: list[str] = []
    begin, total = 0, sum(item.rows for item in manifest.shards if item.source == source)
    wanted = sorted({(2 * number + 1) * total // (2 * _TRIED) for number in range(_TRIED)})
    for number, item in enumerate(manifest.shards):
        if item.source != source:
            continue
        here = [row - begin for row in wanted if begin <= row < begin + item.rows]
        if here:
            data = pa.BufferReader(reader.dest.get(schema.manifest_shard(number)))
            found += pq.read_table(data, columns=["uri"])["uri"].take(here).to_pylist()
        begin += item.rows
    return tuple(found)
