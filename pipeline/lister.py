"""Rows of the manifest, of one source after another: what is taken of it, and what the store says of each object."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import schema
from pipeline.counting import CountingFetcher, CountingReadable
from pipeline.decode import OTHER_SUFFIXES, SUFFIXES
from pipeline.glob import matcher
from pipeline.origin import Kind, Origin
from pipeline.source_table import local_table
from pipeline.table import table_batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.config import SourceConfig
    from pipeline.located import Located

_BATCH_ROWS = 1000  # a page of S3


class Lister:
    """Rows of one source after another.

    Attributes:
        blank: rows of the last table that name no image.
        other: objects of the last prefix that are images of a kind that is not decoded, by their suffix.
    """

    def __init__(
        self, listing: SourceConfig, located: Located, rows_schema: pa.Schema, requests: Counter[str] | None
    ) -> None:
        self._listing = listing
        self._located = CountingFetcher(located)
        self._requests = Counter[str]() if requests is None else requests
        self._schema = rows_schema
        self._included, self._excluded = matcher(listing.include), matcher(listing.exclude)
        self.blank = 0
        self.other: Counter[str] = Counter()

    def candidates(self, origin: Origin) -> Iterator[pa.RecordBatch]:
        """Rows that are taken, duplicates among them; those of a table without sizes and etags as yet."""
        self.blank = 0
        self.other.clear()
        match origin.kind:
            case Kind.TABLE:
                yield from self._of_table(origin)
            case Kind.OBJECT:
                if self._takes(origin.name):
                    yield self._rows([origin.name], None)
            case Kind.PREFIX:
                yield from self._of_prefix(origin)

    def _of_prefix(self, origin: Origin) -> Iterator[pa.RecordBatch]:
        store = CountingReadable(origin.store)
        found = (
            item
            for item in store.list_objects()
            if self._takes(item.key) and (self._listing.include or self._is_image(item.key))
        )
        while batch := list(islice(found, _BATCH_ROWS)):
            info = ([item.size for item in batch], [item.version for item in batch])
            self._requests.update(store.take())
            yield self._rows([store.uri(item.key) for item in batch], info)
        self._requests.update(store.take())

    def _is_image(self, key: str) -> bool:
        name = key.lower()
        if name.endswith(SUFFIXES):
            return True
        if name.endswith(OTHER_SUFFIXES):
            self.other["." + name.rpartition(".")[2]] += 1
        return False

    def _of_table(self, origin: Origin) -> Iterator[pa.RecordBatch]:
        with local_table(origin) as path:
            for batch in table_batches(path, origin.name, self._listing):
                uris = batch["uri"].to_pylist()
                self.blank += uris.count(None)
                taken = batch.filter(pa.array([uri is not None and self._takes(uri) for uri in uris], pa.bool_()))
                if len(taken):
                    yield self._rows(taken["uri"], None, taken.columns[1:])

    def _takes(self, name: str) -> bool:
        return (not self._listing.include or self._included(name)) and not self._excluded(name)

    def _rows(
        self,
        uris: Sequence[str] | pa.Array,
        info: tuple[list[int], list[str]] | None,
        kept: Sequence[pa.Array] | None = None,
    ) -> pa.RecordBatch:
        sizes, etags = info or (pa.nulls(len(uris), pa.int64()), pa.nulls(len(uris), pa.string()))
        fields = self._schema.names[len(schema.MANIFEST_SCHEMA) :]
        others = kept if kept is not None else [pa.nulls(len(uris), self._schema.field(name).type) for name in fields]
        nullable = pa.schema([field.with_nullable(True) for field in self._schema])
        return pa.record_batch([uris, sizes, etags, *others], schema=nullable)

    def complete(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows with sizes and etags, which are asked for where a table named the objects."""
        columns = rows.columns
        if rows["etag"].null_count:
            found = self._located.look_up(rows["uri"].to_pylist())
            self._requests.update(self._located.take())
            if not any(item is not None and item.seen for item in found):
                self._located.check()  # a bucket that is not there at all is no matter of single rows
            columns[1] = pa.array([item.size if item else 0 for item in found], pa.int64())
            columns[2] = pa.array([item.version if item else "" for item in found], pa.string())
        return pa.record_batch(columns, schema=self._schema)
