"""Datasets of any size without images: a store that lists what is not there, and feature shards of zeros."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.config import ModelConfig, SourceConfig, StorageConfig
from pipeline.dataset import agree_on
from pipeline.fingerprint import Fingerprint
from pipeline.lister import Lister
from pipeline.local import LocalStore
from pipeline.located import Located
from pipeline.origin import Kind, Origin
from pipeline.schema import describe_output, embedding_field
from pipeline.seal import features_writer, set_metadata
from pipeline.source import list_rows
from pipeline.storage import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.manifest import Manifest
    from pipeline.storage import Store

CHANGED_EVERY = 100
"""Of the objects that change, one in so many does: 1 %."""

_OUTPUTS = (embedding_field(1),)
_IMAGE_BYTES = 45_000
_IN_A_FOLDER = 1000


class NumberedStore(LocalStore):
    """A folder that lists ``count`` images and holds none.

    Args:
        count: of objects.
        changed: one in :data:`CHANGED_EVERY` has another version than without.
    """

    def __init__(self, count: int, *, changed: bool = False) -> None:
        super().__init__("/raysight-growth")
        self._count = count
        self._changed = changed

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All of them, streamed; versions are as long as an ETag."""
        del prefix
        for number in range(self._count):
            generation = self._changed and number % CHANGED_EVERY == 0
            key = f"{number // _IN_A_FOLDER:07d}/{number:010d}.jpg"
            yield ObjectInfo(key, _IMAGE_BYTES, f"{number:031x}{generation:d}")


def numbered_rows(count: int, *, changed: bool = False) -> tuple[str, Iterator[tuple[str, pa.RecordBatch]]]:
    """The name of a source of ``count`` objects, and its listing as :func:`pipeline.source.list_rows` streams it."""
    store = NumberedStore(count, changed=changed)
    lister = Lister(SourceConfig(), Located([], StorageConfig()), schema.MANIFEST_SCHEMA, None)
    batches = lister.candidates(Origin(Kind.PREFIX, store.root, store))
    return store.root, ((store.root, lister.complete(batch)) for batch in batches)


def real_rows(source: Path) -> tuple[str, Iterator[tuple[str, pa.RecordBatch]]]:
    """The same of a folder of files."""
    return LocalStore(str(source)).root, list_rows([str(source)])


def write_features(dest: Store, manifest: Manifest) -> None:
    """Seals every shard of a manifest, with an embedding of one zero for each row."""
    fingerprint = Fingerprint(
        model="zeros",
        weights="none",
        preset="timm",
        transform="none",
        implementation="fast",
        precision="fp32",
        outputs=tuple(map(describe_output, _OUTPUTS)),
    )
    agree_on(dest, fingerprint, ModelConfig(precision="fp32"))
    columns = schema.features_schema(_OUTPUTS)
    for shard, listed in enumerate(manifest.shards):
        rows = pq.read_table(pa.BufferReader(dest.get(schema.manifest_shard(shard)))).combine_chunks()
        with tempfile.TemporaryDirectory(prefix="raysight-growth-") as folder:
            path = Path(folder) / "features.parquet"
            with features_writer(path, columns) as writer:
                start = 0
                for length in listed.chunks:
                    writer.write_table(_features(rows.slice(start, length), columns), row_group_size=length)
                    start += length
                values = {
                    "format": schema.FORMAT_VERSION,
                    "fingerprint": fingerprint.to_dict(),
                    "shard": shard,
                    "rows": listed.rows,
                    "rejects": 0,
                    "rejects_digest": "",
                    "generation": listed.generation,
                }
                set_metadata(writer, values)
            dest.put_file(schema.features_shard(shard), path)


def _features(rows: pa.Table, columns: pa.Schema) -> pa.Table:
    ones = pa.array(np.ones(len(rows), np.int32))
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(rows), np.float32)), 1)
    return pa.table([rows["uri"], rows["etag"], ones, ones, zeros.cast(columns.field("embedding").type)], columns)
