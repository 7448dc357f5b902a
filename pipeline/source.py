"""What there is to extract: the images of all sources, as rows of the manifest.

A source is a folder or prefix, one image, or a table of URIs; ``pipeline.origin`` tells which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline import schema
from pipeline.config import SourceConfig, StorageConfig
from pipeline.decode import SUFFIXES
from pipeline.errors import UsageError
from pipeline.lister import Lister
from pipeline.located import Located
from pipeline.origin import Kind, Origin, resolve, roots
from pipeline.seen import Seen
from pipeline.source_table import table_kept_fields
from pipeline.storage import split_uri

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator, Sequence


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
        say: told what is left out: rows of a table without a URI, URIs that came before, images that are not decoded.
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
    kept = table_kept_fields(origins, listing)
    lister = Lister(listing, Located(roots(sources), storage), schema.manifest_schema(kept), requests)
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
        if lister.other:
            kinds = ", ".join(f"{number:,} {suffix}" for suffix, number in lister.other.most_common())
            say(f"note: images of {origin.name} that no decoder here reads are left out: {kinds}")
        if again:
            say(f"note: {again:,} rows of {origin.name} name an image that came before and are left out")


def kept_fields(sources: Sequence[str], listing: SourceConfig, storage: StorageConfig) -> list[pa.Field]:
    """The fields of the columns to keep, the same in all tables.

    Raises:
        UsageError: a table lacks one, has another type for it than the others, or there is no table.
        StorageError: a table cannot be read.
    """
    return table_kept_fields([resolve(url, storage) for url in sources], listing)


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
        first = next(list_rows([url], alone, storage, 1), None)
        if first is None:
            raise UsageError(f"{origin.name} holds no image: {_why_none(origin, listing)}")
        if origin.kind is Kind.TABLE:
            split_uri(first[1]["uri"][0].as_py())  # one that begins so is no table of URIs; a later row is rejected


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
