"""What there is to extract: the images of all sources, as rows of the manifest.

A source is a folder or prefix, one image, or a table of URIs; ``pipeline.origin`` tells which.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import schema
from pipeline.config import SourceConfig, StorageConfig
from pipeline.counting import CountingFetcher, CountingReadable
from pipeline.decode import SUFFIXES
from pipeline.errors import UsageError
from pipeline.glob import matcher
from pipeline.located import Located
from pipeline.origin import Kind, Origin, resolve, roots
from pipeline.seen import Seen
from pipeline.table import table_batches, table_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_BATCH_ROWS = 1000  # a page of S3


def source_names(sources: Iterable[str], storage: StorageConfig) -> tuple[str, ...]:
    """What the manifest calls the sources: absolute, a prefix with a slash at its end. Raises UsageError."""
    return tuple(resolve(url, storage).name for url in sources)


def list_rows(
    sources: Sequence[str],
    listing: SourceConfig | None = None,
    storage: StorageConfig | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    requests: Counter[str] | None = None,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The images of all sources as rows of the manifest, streamed: (name of the source, batch).

    Args:
        sources: URLs, in order.
        listing: what of them is taken, and what goes with it.
        storage: how stores are talked to.
        limit: only so many rows, of all sources together.
        say: told what is left out of a table: rows without a URI, and URIs that came before.
        requests: the requests of the listing are added here.

    Yields:
        batches of MANIFEST_SCHEMA and the kept columns, of at most a thousand rows, none of them empty. A uri comes
        once. Of objects that a table names, those that are not there have size 0 and etag "", those that may not
        be seen size -1.

    Raises:
        UsageError: a source, a column or a pattern is not what it should be.
        StorageError: a store cannot be reached.
    """
    listing, storage = listing or SourceConfig(), storage or StorageConfig()
    origins = [resolve(url, storage) for url in sources]
    kept = _kept_fields(origins, listing)
    lister = _Lister(listing, Located(roots(sources), storage), schema.manifest_schema(kept), requests)
    seen = Seen() if len(origins) > 1 or origins[0].kind is Kind.TABLE else None
    left = limit
    for origin in origins:
        again = 0
        for batch in lister.candidates(origin):
            fresh = batch
            if seen is not None:
                fresh = batch.filter(pa.array(seen.add(batch["uri"].to_pylist()), pa.bool_()))
                again += len(batch) - len(fresh)
            fresh = fresh.slice(0, left)
            if len(fresh):
                yield origin.name, lister.complete(fresh)
            if left is not None:
                left -= len(fresh)
                if left == 0:
                    return
        if lister.blank:
            say(f"note: {lister.blank:,} rows of {origin.name} name no image and are left out")
        if again:
            say(f"note: {again:,} rows of {origin.name} name an image that came before and are left out")


def kept_fields(sources: Sequence[str], listing: SourceConfig, storage: StorageConfig) -> list[pa.Field]:
    """The fields of the columns to keep, the same in all tables.

    Raises:
        UsageError: a table lacks one, has another type for it than the others, or there is no table.
        StorageError: a table cannot be read.
    """
    return _kept_fields([resolve(url, storage) for url in sources], listing)


def require_images(sources: Sequence[str], listing: SourceConfig, storage: StorageConfig) -> None:
    """Makes sure that there is something to extract, before anything is written or started.

    Raises:
        UsageError: a source does not exist or holds no image, or a column or a pattern is not what it should be.
        StorageError: a store cannot be reached.
    """
    for patterns, option in ((listing.include, "--include"), (listing.exclude, "--exclude")):
        if "" in patterns:
            raise UsageError(f"{option}: an empty pattern matches nothing")
    kept_fields(sources, listing, storage)
    for url in sources:
        origin = resolve(url, storage)
        if origin.kind is Kind.PREFIX:
            origin.store.check()
        alone = listing if origin.kind is Kind.TABLE else SourceConfig(include=listing.include, exclude=listing.exclude)
        if next(list_rows([url], alone, storage, 1), None) is None:
            raise UsageError(f"{origin.name} holds no image: {_why_none(origin, listing)}")


def check_sources(sources: Sequence[str], storage: StorageConfig) -> None:
    """Makes sure that the sources can be reached. Raises UsageError or StorageError where not."""
    for url in sources:
        origin = resolve(url, storage)
        if origin.kind is Kind.PREFIX:
            origin.store.check()


def _why_none(origin: Origin, listing: SourceConfig) -> str:
    if listing.include or listing.exclude:
        return "nothing there matches --include and --exclude"
    if origin.kind is Kind.TABLE:
        return "it has no row that names one"
    return f"no name there ends in {', '.join(SUFFIXES)}"


def _kept_fields(origins: Sequence[Origin], listing: SourceConfig) -> list[pa.Field]:
    tables = [origin for origin in origins if origin.kind is Kind.TABLE]
    if not tables:
        if listing.keep or listing.uri_column:
            option = "--keep" if listing.keep else "--uri-column"
            raise UsageError(f"{option} is about tables of URIs (.parquet, .csv, .txt), and no SOURCE is one")
        return []
    if len(set(listing.keep)) < len(listing.keep):
        raise UsageError(f"--keep {','.join(listing.keep)}: a column can be kept once")
    found: dict[str, tuple[pa.Field, str]] = {}
    for origin in tables:
        with _Table(origin) as path:
            for field in table_fields(path, origin.name, listing)[1]:
                known, where = found.setdefault(field.name, (field, origin.name))
                if known.type != field.type:
                    raise UsageError(
                        f"--keep {field.name}: {where} has {known.type} there, {origin.name} {field.type};"
                        " write them with one type"
                    )
    return [found[name][0] for name in listing.keep]


class _Lister:
    """Rows of one source after another.

    Attributes:
        blank: rows of the last table that name no image.
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

    def candidates(self, origin: Origin) -> Iterator[pa.RecordBatch]:
        """Rows that are taken, duplicates among them; those of a table without sizes and etags as yet."""
        self.blank = 0
        match origin.kind:
            case Kind.TABLE:
                yield from self._of_table(origin)
            case Kind.OBJECT:
                if self._takes(origin.name):
                    yield self._rows([origin.name], None)
            case Kind.PREFIX:
                yield from self._of_prefix(origin)

    def _of_prefix(self, origin: Origin) -> Iterator[pa.RecordBatch]:
        suffixes = () if self._listing.include else SUFFIXES
        store = CountingReadable(origin.store)
        found = (
            item
            for item in store.list_objects()
            if (not suffixes or item.key.lower().endswith(suffixes)) and self._takes(item.key)
        )
        while batch := list(islice(found, _BATCH_ROWS)):
            info = ([item.size for item in batch], [item.version for item in batch])
            self._requests.update(store.take())
            yield self._rows([store.uri(item.key) for item in batch], info)
        self._requests.update(store.take())

    def _of_table(self, origin: Origin) -> Iterator[pa.RecordBatch]:
        with _Table(origin) as path:
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


class _Table:
    """A table as a local file, for as long as the context lasts."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if self._origin.local is not None:
            return self._origin.local
        self._folder = tempfile.TemporaryDirectory(prefix="raysight-table-")
        path = Path(self._folder.name) / "table"
        self._origin.store.get_file(self._origin.key, path)
        return path

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()
