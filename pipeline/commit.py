"""The commit of a chunk: features and reject rows together, one object, written atomically under a fixed name."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.columns import spread
from pipeline.errors import RejectError
from pipeline.pieces import in_pieces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.storage import Store


def build_chunk(
    uris: Sequence[str],
    etags: Sequence[str],
    outcomes: Sequence[tuple[int, int] | RejectError],
    features: Mapping[str, pa.Array],
    outputs: Sequence[pa.Field],
    kept: pa.Table | None = None,
) -> pa.Table:
    """One row for each manifest row of the chunk, in its order.

    Args:
        uris: of the n rows.
        etags: likewise.
        outcomes: n times (width, height) of a good image, or why it was rejected.
        features: columns of the good images alone, in order.
        outputs: the fields of these columns.
        kept: n rows of the columns that the source's table gave; None is no columns.

    Raises:
        ValueError: the lengths do not fit each other; nothing must be committed then.
    """
    good = [not isinstance(outcome, RejectError) for outcome in outcomes]
    if not len(uris) == len(etags) == len(outcomes):
        raise ValueError(f"{len(uris)} uris, {len(etags)} etags and {len(outcomes)} outcomes in one chunk")
    if kept is not None and len(kept) != len(uris):
        raise ValueError(f"{len(kept)} rows of kept columns for {len(uris)} uris")
    for name, column in features.items():
        if len(column) != sum(good):
            raise ValueError(f"{len(column)} values of {name} for {sum(good)} images")
    sizes = [(None, None) if isinstance(outcome, RejectError) else outcome for outcome in outcomes]
    rejects = [outcome if isinstance(outcome, RejectError) else None for outcome in outcomes]
    columns = {
        "uri": pa.array(uris, pa.string()),
        "etag": pa.array(etags, pa.string()),
        **({field.name: kept[field.name] for field in kept.schema} if kept is not None else {}),
        "width": pa.array([width for width, _ in sizes], pa.int32()),
        "height": pa.array([height for _, height in sizes], pa.int32()),
        **{field.name: spread(features[field.name], good) for field in outputs},
        "stage": pa.array([reject and reject.stage for reject in rejects], pa.string()),
        "error": pa.array([reject and reject.error for reject in rejects], pa.string()),
        "message": pa.array([reject and reject.message for reject in rejects], pa.string()),
    }
    return pa.table(columns, schema=schema.chunk_schema(outputs, kept.schema if kept is not None else ()))


def commit_chunk(dest: Store, shard: int, chunk: int, table: pa.Table) -> int:
    """Writes a chunk and returns the bytes written. A retry, or a zombie of a dead run, only rewrites the same."""
    data = encode(table)
    dest.put(schema.chunk_object(shard, chunk), data)
    return len(data)


def encode(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file with one row group."""
    buffer = io.BytesIO()
    # Room for levels and footer too: a buffer that grows is copied, and leaves its former selves in the heap.
    buffer.seek(table.nbytes + table.nbytes // 16)
    buffer.write(b"\0")
    buffer.seek(0)
    pq.write_table(in_pieces(table), buffer, row_group_size=max(1, len(table)), **parquet_options(table.schema))
    buffer.truncate()
    return buffer.getvalue()


def parquet_options(layout: pa.Schema) -> dict[str, Any]:
    """How feature files are written: features do not compress, nor does anybody search them by their range (to find
    it takes half the time of a write)."""
    searched = [field.name for field in layout if not pa.types.is_fixed_size_list(field.type)]
    return {"compression": "none", "use_dictionary": False, "write_statistics": searched}
