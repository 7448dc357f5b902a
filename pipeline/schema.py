"""The shape of everything raysight stores: Arrow schemas, object names, metadata."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FORMAT_VERSION = 2
"""Of a dataset; docs/output.md says what it promises. 1 had no generations."""

ROOT_FOLDER = "_raysight/"
DATASET = "_raysight/dataset.json"
LEASE = "_raysight/lease.json"
MANIFEST_MARKER = "_raysight/manifest/committed.json"
MANIFEST_FOLDER = "_raysight/manifest/"
CHUNKS_FOLDER = "_raysight/chunks/"
FEATURES_FOLDER = "features/"
REJECTS_FOLDER = "rejects/"

METADATA_KEY = b"raysight"
"""Key of the JSON in the Parquet metadata of every feature shard."""

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
    ]
)

RETIRED_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""Rows of one manifest shard that leave the dataset with one generation."""

IDENTITY_FIELDS = [pa.field("uri", pa.string(), nullable=False), pa.field("etag", pa.string(), nullable=False)]
SIZE_FIELDS = [pa.field("width", pa.int32()), pa.field("height", pa.int32())]
REJECT_FIELDS = [pa.field(name, pa.string()) for name in ("stage", "error", "message")]

REJECTS_SCHEMA = pa.schema([*IDENTITY_FIELDS, *REJECT_FIELDS])


RESERVED = frozenset(
    {
        *MANIFEST_SCHEMA.names,
        *(field.name for field in (*SIZE_FIELDS, *REJECT_FIELDS)),
        *("embedding", "patches", "class_index", "class_probability"),
    }
)
"""Names that no kept column can have."""


def manifest_schema(kept: Iterable[pa.Field] = ()) -> pa.Schema:
    """A manifest shard: what identifies an object, then the columns kept of a table of URIs."""
    return pa.schema([*MANIFEST_SCHEMA, *kept])


def embedding_field(dim: int, dtype: str = "float32") -> pa.Field:
    """The column of an embedding of ``dim`` float32 or float16 values; a plain Arrow type that every reader knows."""
    return pa.field("embedding", pa.list_(_DTYPES[dtype], dim))


def patches_field(count: int, dim: int) -> pa.Field:
    """The column of ``count`` patch tokens of ``dim`` float16 values; nested, so that readers see a matrix."""
    return pa.field("patches", pa.list_(pa.list_(pa.float16(), dim), count))


def class_fields(count: int) -> tuple[pa.Field, pa.Field]:
    """The columns of the ``count`` likeliest classes, likeliest first: their int32 indices, and float32 percentages."""
    return (
        pa.field("class_index", pa.list_(pa.int32(), count)),
        pa.field("class_probability", pa.list_(pa.float32(), count)),
    )


_DTYPES = {"float32": pa.float32(), "float16": pa.float16()}


def describe_output(field: pa.Field) -> str:
    """A feature column in words, such as ``embedding: float32[384]``; readers may rename the inner field."""
    shape, dtype = value_shape(field.type)
    return f"{field.name}: {np.dtype(dtype.to_pandas_dtype())}[{', '.join(map(str, shape))}]"


def parse_output(text: str) -> pa.Field:
    """The inverse of :func:`describe_output`."""
    name, _, kind = text.partition(": ")
    dtype, _, shape = kind.removesuffix("]").partition("[")
    value = pa.from_numpy_dtype(np.dtype(dtype))
    for size in reversed(shape.split(", ")):
        value = pa.list_(value, int(size))
    return pa.field(name, value)


def value_shape(kind: pa.DataType) -> tuple[tuple[int, ...], pa.DataType]:
    """The shape of one value of a (nested) fixed-size list, and the type of its numbers."""
    shape: list[int] = []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    return tuple(shape), kind


def row_bytes(outputs: Iterable[pa.Field]) -> int:
    """Bytes of the features of one image."""
    shapes = [value_shape(field.type) for field in outputs]
    return sum(math.prod(shape) * dtype.bit_width // 8 for shape, dtype in shapes)


def chunk_schema(outputs: Iterable[pa.Field], kept: Iterable[pa.Field] = ()) -> pa.Schema:
    """A committed chunk: features and rejects together, one row for each manifest row, in its order."""
    return pa.schema([*IDENTITY_FIELDS, *kept, *SIZE_FIELDS, *outputs, *REJECT_FIELDS])


def features_schema(outputs: Iterable[pa.Field], kept: Iterable[pa.Field] = ()) -> pa.Schema:
    """A sealed feature shard."""
    return pa.schema([*IDENTITY_FIELDS, *kept, *SIZE_FIELDS, *outputs])


def rejects_schema(kept: Iterable[pa.Field] = ()) -> pa.Schema:
    """A sealed rejects shard."""
    return pa.schema([*IDENTITY_FIELDS, *kept, *REJECT_FIELDS])


def kept_fields(schema: pa.Schema) -> list[pa.Field]:
    """The kept columns of a manifest, features or rejects shard, or a chunk: they follow what identifies a row."""
    start = len(MANIFEST_SCHEMA if "size" in schema.names else IDENTITY_FIELDS)
    ends = [schema.get_field_index(name) for name in ("width", "stage") if name in schema.names]
    return [schema.field(index) for index in range(start, min(ends, default=len(schema)))]


def with_metadata(schema: pa.Schema, values: dict[str, Any]) -> pa.Schema:
    """The schema with ``values`` as its raysight metadata."""
    return schema.with_metadata({METADATA_KEY: json.dumps(values, sort_keys=True).encode()})


def metadata(footer: pq.FileMetaData) -> dict[str, Any]:
    """The raysight metadata in the footer of a shard; empty where there is none."""
    values: dict[str, Any] = json.loads((footer.metadata or {}).get(METADATA_KEY, b"{}"))
    return values


def manifest_shard(shard: int) -> str:
    """Name of a manifest shard."""
    return f"{MANIFEST_FOLDER}shard-{shard:06d}.parquet"


def retired_rows(generation: int, shard: int) -> str:
    """Name of the list of rows that leave a shard with a generation."""
    return f"{MANIFEST_FOLDER}retired-{generation:06d}/shard-{shard:06d}.parquet"


def chunk_object(shard: int, chunk: int) -> str:
    """Name of a committed chunk; the same chunk always has the same name, so that a retry only rewrites it."""
    return f"{CHUNKS_FOLDER}shard-{shard:06d}/{chunk:05d}.parquet"


def features_shard(shard: int) -> str:
    """Name of a sealed feature shard."""
    return f"{FEATURES_FOLDER}shard-{shard:06d}.parquet"


def rejects_shard(shard: int, digest: str) -> str:
    """Name of a sealed rejects shard; the digest is of its content."""
    return f"{REJECTS_FOLDER}shard-{shard:06d}-{digest}.parquet"


_RETIRED = re.compile(re.escape(MANIFEST_FOLDER) + r"retired-([0-9]+)/shard-([0-9]+)\.parquet")
_CHUNK = re.compile(re.escape(CHUNKS_FOLDER) + r"shard-([0-9]+)/([0-9]+)\.parquet")
_SHARD = re.compile(r"(features|rejects|_raysight/manifest)/shard-([0-9]+)(?:-([0-9a-f]{16}))?\.parquet")


def parse_chunk(key: str) -> tuple[int, int] | None:
    """The inverse of :func:`chunk_object`; None for other names."""
    return _parse_pair(_CHUNK, chunk_object, key)


def parse_retired(key: str) -> tuple[int, int] | None:
    """The inverse of :func:`retired_rows`; None for other names."""
    return _parse_pair(_RETIRED, retired_rows, key)


def _parse_pair(pattern: re.Pattern[str], name: Callable[[int, int], str], key: str) -> tuple[int, int] | None:
    match = pattern.fullmatch(key)
    if match is None:
        return None
    pair = int(match.group(1)), int(match.group(2))
    return pair if name(*pair) == key else None


def parse_shard(key: str) -> int | None:
    """The shard number in the name of a manifest, feature or rejects shard; None for any other name."""
    match = _SHARD.fullmatch(key)
    if match is None:
        return None
    folder, shard, digest = match.group(1), int(match.group(2)), match.group(3)
    if folder == "rejects":
        name = rejects_shard(shard, digest or "")
    else:
        name = features_shard(shard) if folder == "features" else manifest_shard(shard)
    return shard if name == key else None
