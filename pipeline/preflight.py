"""What a job settles before it starts: the precision, the manifest, the size of a shard."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cut import Cut
from pipeline.dataset import load_info
from pipeline.errors import InterruptedJobError, UsageError
from pipeline.generation import Listing, write_generation
from pipeline.manifest import Manifest, load_manifest
from pipeline.precision import check_precision, resolve_precision
from pipeline.schema import row_bytes
from pipeline.source import list_rows, source_names

if TYPE_CHECKING:
    import threading
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

    from pipeline.budget import Budget
    from pipeline.config import Config, JobConfig, ModelConfig
    from pipeline.extractor import Extractor
    from pipeline.storage import Store


def settle_precision(model: ModelConfig, dest: Store, budget: Budget) -> ModelConfig:
    """``auto`` is what an existing dataset has, else what suits the device of the actors.

    Raises:
        UsageError: the actors' device cannot compute in what was asked for, or there is no such model.
    """
    device = "cuda" if budget.gpus_per_actor > 0 else "cpu"
    existing = load_info(dest) if model.precision == "auto" else None
    wanted = existing.model.precision if existing is not None else model.precision
    check_precision(wanted, device)
    return replace(model, precision=resolve_precision(wanted, model.name, device))


def ensure_manifest(
    config: Config,
    dest: Store,
    extractor: Extractor,
    budget: Budget,
    stop: threading.Event,
    say: Callable[[str], None],
    requests: Counter[str] | None = None,
) -> Manifest:
    """The dataset's manifest, listed now if there is none; the requests of the listing are added to ``requests``.

    Raises:
        InterruptedJobError: ``stop`` was set in the middle of the listing.
        UsageError: it was made from another source or with another limit, or the source holds no image.
    """
    manifest = load_manifest(dest)
    names = source_names(config.sources, config.storage)
    if manifest is not None:
        if (manifest.sources, manifest.last.limit) != (names, config.job.limit):
            raise UsageError(
                f"{dest.root} was made from {', '.join(manifest.sources)} with limit {manifest.last.limit}, not from"
                f" {', '.join(names)} with limit {config.job.limit}; use another DEST"
            )
        say(f"{manifest.rows:,} images, as {', '.join(manifest.sources)} was listed at {manifest.last.listed_at}")
        return manifest
    say(f"listing {', '.join(names)}")
    job = config.job
    cut = make_cut(job, budget, extractor.outputs)
    manifest = write_generation(
        dest,
        None,
        Listing(names, job.limit),
        _until(stop, list_rows(config.sources, config.listing, config.storage, job.limit, say, requests)),
        cut,
        progress=lambda rows: say(f"listed {rows:,} images"),
    )
    say(f"{manifest.rows:,} images, {manifest.last.bytes / 2**20:,.1f} MiB, {manifest.chunks:,} chunk(s)")
    return manifest


def _until(stop: threading.Event, rows: Iterator[tuple[str, pa.RecordBatch]]) -> Iterator[tuple[str, pa.RecordBatch]]:
    for item in rows:
        if stop.is_set():
            raise InterruptedJobError("stopped while listing; the same command lists anew")
        yield item


def make_cut(job: JobConfig, budget: Budget, outputs: Sequence[pa.Field]) -> Cut:
    """The sizes of chunks and shards; wide rows make both of fewer rows, so that their features stay within bounds."""
    width = row_bytes(outputs)
    chunk_rows = max(1, min(budget.chunk_rows, job.chunk_feature_bytes // width))
    return Cut(chunk_rows, job.chunk_bytes, max(1, min(job.shard_rows, job.shard_bytes // width)), job.shard_chunks)
