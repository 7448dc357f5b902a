"""Brings the manifest up to date with the sources: a listing becomes a generation if it changes anything."""

from __future__ import annotations

import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.diff import Counts, Difference
from pipeline.errors import UsageError
from pipeline.generation import Listing, write_generation
from pipeline.staged import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pyarrow as pa

    from pipeline.cut import Cut
    from pipeline.manifest import Manifest
    from pipeline.storage import Store

_SAY_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Sync:
    """What to list, and what to do about it.

    Attributes:
        listing: the sources, and how many objects of them.
        prune: rows whose object is gone leave the dataset.
        memory: bytes that comparing may take; more is spilled to the temporary folder.
    """

    listing: Listing
    prune: bool
    memory: int

    def __post_init__(self) -> None:
        if self.prune and self.listing.limit is not None:
            raise UsageError("--prune with --limit would drop everything beyond the limit; leave one of them out")


@contextmanager
def compare(
    dest: Store,
    manifest: Manifest | None,
    sync: Sync,
    rows: Iterable[tuple[str, pa.RecordBatch]],
    say: Callable[[str], None],
) -> Iterator[tuple[Difference, Counts]]:
    """Lists, and compares with the live rows; writes nothing to the dataset.

    Args:
        dest: the dataset, settled.
        manifest: its manifest; None for a new one.
        sync: what to do.
        rows: (source, batch of MANIFEST_SCHEMA and kept columns) as listed.
        say: prints a line.

    Raises:
        UsageError: pruning would drop all rows of a source.
        StorageError: listing failed.
    """
    sources = sync.listing.sources
    told = 0

    def progress(total: int) -> None:
        nonlocal told
        if total >= told + _SAY_ROWS:
            told = total
            say(f"listed {total:,} images")

    with tempfile.TemporaryDirectory(prefix="raysight-sync-") as name:
        folder = Path(name)
        listing = stage(folder / "listing.parquet", rows, progress)
        with closing(Difference(listing, folder, sync.memory)) as difference:
            if manifest is not None:
                if sync.prune and (empty := difference.empty_sources(manifest, sources)):
                    raise UsageError(
                        f"{', '.join(empty)} holds no image any more, and --prune would drop every row of it;"
                        " is it the right place? Without --prune the rows stay"
                    )
                difference.fetch(dest, manifest)
            yield difference, difference.compare(manifest, sources, prune=sync.prune, whole=sync.listing.limit is None)


def sync_manifest(
    dest: Store,
    manifest: Manifest | None,
    sync: Sync,
    rows: Iterable[tuple[str, pa.RecordBatch]],
    cut: Cut,
    say: Callable[[str], None],
) -> Manifest:
    """Lists and commits a generation, or gives the same manifest back when nothing has changed.

    Args:
        cut: bounds of new chunks and shards; the others as for :func:`compare`, which says what is raised.
    """
    say(f"listing {', '.join(sync.listing.sources)}")
    with compare(dest, manifest, sync, rows, say) as (difference, counts):
        for line in describe(counts, prune=sync.prune, first=manifest is None):
            say(line)
        if manifest is not None and not (counts.new or counts.changed or (counts.gone and sync.prune)):
            return manifest
        retired = difference.leaving(prune=sync.prune)
        new = write_generation(dest, manifest, sync.listing, difference.chosen(), cut, retired=retired)
    say(f"to extract: {new.last.rows:,} images, {new.last.bytes / 2**20:,.1f} MiB")
    return new


def describe(counts: Counts, *, prune: bool, first: bool) -> Iterator[str]:
    """What a listing found, in words."""
    if first:
        yield f"{counts.listed:,} images"
    else:
        yield f"{counts.listed:,} images: {counts.new:,} new, {counts.changed:,} changed"
    if counts.duplicates:
        yield f"named again by the listing: {counts.duplicates:,}; the first row of each holds"
    if counts.gone:
        what = "their rows are dropped" if prune else "--prune drops their rows"
        yield f"gone from the source: {counts.gone:,}; {what}"
