"""What a job settles before it starts: the sizes of its chunks and shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cut import Cut
from pipeline.errors import InterruptedJobError
from pipeline.schema import row_bytes

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from pipeline.budget import Budget
    from pipeline.config import JobConfig
    from pipeline.manifest import Manifest


def until(stop: threading.Event, rows: Iterator[tuple[str, pa.RecordBatch]]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of a listing.

    Raises:
        InterruptedJobError: ``stop`` was set in the middle of it.
    """
    for item in rows:
        if stop.is_set():
            raise InterruptedJobError("stopped while listing; the same command lists anew")
        yield item


def make_cut(job: JobConfig, budget: Budget, outputs: Sequence[pa.Field], image_bytes: int = 0) -> Cut:
    """The sizes of chunks and shards; wide rows make both of fewer rows, so that their features stay within bounds.

    Args:
        job: the bounds.
        budget: who works.
        outputs: the feature columns.
        image_bytes: of the pixels of one image, which count where tasks decode.
    """
    width = row_bytes(outputs)
    chunk_rows = max(1, min(budget.chunk_rows, job.chunk_feature_bytes // width))
    if job.decode == "tasks" and image_bytes:
        chunk_rows = max(1, min(chunk_rows, job.chunk_pixel_bytes // image_bytes))
    return Cut(chunk_rows, job.chunk_bytes, max(1, min(job.shard_rows, job.shard_bytes // width)), job.shard_chunks)


def largest_chunk(cut: Cut, outputs: Sequence[pa.Field], manifest: Manifest | None) -> int:
    """Feature bytes of the largest chunk; those that are listed already may be larger than those to come."""
    listed = manifest.shards if manifest is not None else ()
    return max([cut.chunk_rows, *(max(shard.chunks) for shard in listed)]) * row_bytes(outputs)
