"""The images of a chunk as the read stage hands them on: encoded, or decoded to the model's input already."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.errors import RejectError
from pipeline.prepared import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pipeline.preprocess import Preprocessor

_REJECT = ("stage", "error", "message")


def images(row: pa.Table) -> Iterator[memoryview | Prepared | RejectError]:
    """The images of one row of ``pipeline.read.CHUNK_ROW_SCHEMA``, where they lie in the object store: no copies."""
    rejects = row["reject"].combine_chunks().values
    data, sizes = row["data"].combine_chunks().values, row["size"].combine_chunks().values
    shape = row["shape"][0].as_py()
    pixels = iter(np.frombuffer(row["pixels"][0].as_buffer(), np.uint8).reshape(-1, *shape)) if shape else iter(())
    for index in range(len(data)):
        if rejects[index].is_valid:
            yield RejectError(**rejects[index].as_py())
        elif sizes[index].is_valid:
            yield Prepared(next(pixels), *sizes[index].as_py())
        else:
            # Arrow calls its bytes signed, which simplejpeg refuses, and Pillow would decode in its place.
            yield memoryview(data[index].as_buffer()).cast("B")


def decode_rows(
    rows: Iterable[pa.Table],
    preprocessor: Preprocessor,
    begin: Callable[[int, int], bool],
    end: Callable[[int, int], None],
) -> Iterator[pa.Table]:
    """Chunks with pixels in place of encoded bytes.

    Args:
        rows: of ``pipeline.read.CHUNK_ROW_SCHEMA``.
        preprocessor: the model's.
        begin: told shard and chunk; False where decoding has killed its process too often: the actor does it in
            isolation.
        end: told shard and chunk of what is decoded, before it is handed on: whoever takes it may be faster.
    """

    def decode(row: pa.Table) -> pa.Table:
        where = row["shard"][0].as_py(), row["chunk"][0].as_py()
        if not begin(*where):
            return row
        decoded = decode_row(row, preprocessor)
        end(*where)
        return decoded

    return map(decode, rows)


def decode_row(row: pa.Table, preprocessor: Preprocessor) -> pa.Table:
    """One chunk with pixels in place of encoded bytes; what cannot be decoded is among its rejects."""
    wall, cpu = time.perf_counter(), time.thread_time()
    config = preprocessor.config
    shape = (config.height, config.width, 3)
    items = list(images(row))
    pixels = np.empty((len(items), *shape), np.uint8)
    sizes: list[tuple[int, int] | None] = []
    rejects: list[dict[str, str] | None] = []
    good = 0
    for item in items:
        size, reject = None, item if isinstance(item, RejectError) else None
        if isinstance(item, memoryview):
            try:
                prepared = preprocessor.prepare(item)
            except RejectError as error:
                reject = error
            else:
                pixels[good] = prepared.pixels
                good += 1
                size = prepared.width, prepared.height
        sizes.append(size)
        rejects.append(None if reject is None else {name: getattr(reject, name) for name in _REJECT})
    columns = {
        "data": [[None] * len(items)],
        "reject": [rejects],
        "size": [sizes],
        "shape": [list(shape)],
        "pixels": _one_value(pixels[:good]),
        "prepare_seconds": [time.perf_counter() - wall],
        "prepare_cpu_seconds": [time.thread_time() - cpu],
    }
    for name, values in columns.items():
        index = row.schema.get_field_index(name)
        row = row.set_column(index, row.schema.field(index), pa.array(values, row.schema.field(index).type))
    return row


def _one_value(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> pa.Array:
    """All bytes of an array as the one value of a column, without a copy."""
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels)])
