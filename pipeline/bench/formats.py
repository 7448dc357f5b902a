"""The ways to store an embedding in Parquet, measured. The best of them is ``pipeline.commit.parquet_options``."""

from __future__ import annotations

import io
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.columns import to_column
from pipeline.commit import parquet_options
from pipeline.config import ImageLimits, ModelConfig
from pipeline.extractor import load_extractor

_REPEATS = 3
_GROUP = 1024

_PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
_WAYS: dict[str, dict[str, Any]] = {
    "plain": _PLAIN,
    "zstd": {**_PLAIN, "compression": "zstd"},
    "lz4": {**_PLAIN, "compression": "lz4"},
    "BYTE_STREAM_SPLIT": {**_PLAIN, "use_byte_stream_split": True},
    "BYTE_STREAM_SPLIT, lz4": {**_PLAIN, "use_byte_stream_split": True, "compression": "lz4"},
    "BYTE_STREAM_SPLIT, zstd": {**_PLAIN, "use_byte_stream_split": True, "compression": "zstd"},
}


def ways(source: str, images: int, rows: int) -> dict[str, Any]:
    """Measures every way with float32 and float16.

    Args:
        source: folder of photographs.
        images: how many of them are embedded, by a small vision transformer of seeded weights; the last layer norm
            gives its values the spread of a trained one's.
        rows: of the table: the embeddings, each with noise of a tenth of their spread, so that no row repeats.

    Returns:
        name → ``bytes`` of an embedding, and thousands of rows a second to ``write`` and to ``read``.
    """
    config = ModelConfig("vit_tiny_patch16_224", weights="random:0", precision="fp32")
    extractor = load_extractor(config, ImageLimits())
    files = islice(sorted(Path(source).iterdir()), images)
    found = extractor.forward([extractor.prepare(path.read_bytes()).pixels for path in files])["embedding"]
    generator = np.random.default_rng(0)
    both = np.concatenate([found, found], axis=1)  # 384 values, as the default model's
    values = both[generator.integers(len(both), size=rows)]
    values = values + generator.normal(0, 0.1 * float(both.std()), values.shape)
    figures = {}
    for dtype in ("float32", "float16"):
        field = schema.embedding_field(values.shape[1], dtype)
        table = pa.table({"embedding": to_column(values.astype(dtype), field.type)}, schema=pa.schema([field]))
        measure(table, _PLAIN)  # the first to run would pay for memory that the others find
        figures[f"{dtype}, as raysight writes it"] = measure(table, parquet_options(table.schema))
        for name, options in _WAYS.items():
            figures[f"{dtype}, {name}"] = measure(table, options)
    return figures


def measure(table: pa.Table, options: dict[str, Any]) -> dict[str, float]:
    """Writes to memory and reads again, several times; the median of each."""
    writes, reads = [], []
    for _ in range(_REPEATS):
        buffer = io.BytesIO()
        start = time.perf_counter()
        pq.write_table(table, buffer, row_group_size=_GROUP, **options)
        writes.append(time.perf_counter() - start)
        data = pa.BufferReader(buffer.getvalue())
        start = time.perf_counter()
        again = pq.read_table(data)
        reads.append(time.perf_counter() - start)
        assert again.equals(table), "what was read is not what was written"
    thousands = len(table) / 1000
    return {
        "bytes": buffer.tell() / len(table),
        "write": thousands / median(writes),
        "read": thousands / median(reads),
    }
