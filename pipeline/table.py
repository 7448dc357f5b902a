"""Tables of URIs: Parquet, CSV, or text with one URI a line; streamed, with the columns to keep."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import UsageError
from pipeline.keys import nearest
from pipeline.storage import scheme

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.config import SourceConfig

SUFFIXES = (".parquet", ".csv", ".txt")

_URI_COLUMNS = ("uri", "url", "path", "image")
_BATCH_ROWS = 1000


def table_format(name: str) -> str:
    """The suffix of :data:`SUFFIXES` that a name ends in, whatever its case; empty where it is no table's.

    The query of a URL, such as a signature, is no part of the name.
    """
    path = _without_query(name).lower()
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), "")


def table_fields(path: Path, name: str, config: SourceConfig) -> tuple[str, list[pa.Field]]:
    """The column of URIs, and the fields of the columns to keep: plain types, all nullable.

    Args:
        path: the table as a local file.
        name: its URI, for messages; the suffix tells the format.
        config: ``uri_column`` and ``keep``.

    Raises:
        UsageError: it cannot be read, or has no such column, or one of a type or name that cannot be kept.
    """
    columns = _columns(path, name)
    uri = _uri_column(columns, name, config.uri_column)
    return uri, [_kept_field(columns, name, column) for column in config.keep]


def table_batches(path: Path, name: str, config: SourceConfig) -> Iterator[pa.RecordBatch]:
    """Rows of at most a thousand: the column ``uri`` (null where the table says nothing), then the kept columns.

    Relative paths are made absolute: they are relative to the table's folder.

    Raises:
        UsageError: as :func:`table_fields`, or a row is malformed.
    """
    column, kept = table_fields(path, name, config)
    folder = _without_query(name).rpartition("/")[0] + "/"
    fields = pa.schema([pa.field("uri", pa.string()), *kept])
    try:
        for batch in _read(path, name, [column, *config.keep]):
            uris = [_absolute(uri, folder) for uri in batch.column(0).cast(pa.string()).to_pylist()]
            arrays = [array.cast(field.type) for array, field in zip(batch.columns[1:], kept, strict=True)]
            yield pa.record_batch([pa.array(uris, pa.string()), *arrays], schema=fields)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{name} cannot be read: {error}") from error


def _columns(path: Path, name: str) -> pa.Schema:
    try:
        if table_format(name) == ".parquet":
            return pq.read_schema(path)
        if table_format(name) == ".csv":
            with pyarrow.csv.open_csv(path) as reader:
                return pa.schema([(column, pa.string()) for column in reader.schema.names])
    except pa.ArrowException as error:
        raise UsageError(f"{name} cannot be read: {error}") from error
    return pa.schema([("uri", pa.string())])


def _uri_column(columns: pa.Schema, name: str, wanted: str | None) -> str:
    if wanted is None:
        candidates = [column for column in _URI_COLUMNS if column in columns.names]
        if len(columns) == 1:
            candidates = columns.names
        if not candidates:
            raise UsageError(f"{name}: which column names the images? give --uri-column; {_listed(columns)}")
        wanted = candidates[0]
    _require(columns, name, wanted, "--uri-column")
    kind = columns.field(wanted).type
    if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        raise UsageError(f"{name}: the column {wanted} holds {kind}, not URIs; give another --uri-column")
    return wanted


def _kept_field(columns: pa.Schema, name: str, column: str) -> pa.Field:
    if column in schema.RESERVED:
        raise UsageError(f"--keep {column}: raysight writes a column of this name itself; rename it in {name}")
    _require(columns, name, column, "--keep")
    kind = _plain(columns.field(column).type)
    if kind is None:
        raise UsageError(f"--keep {column}: {name} has {columns.field(column).type} there, which cannot be kept")
    return pa.field(column, kind)


def _require(columns: pa.Schema, name: str, column: str, option: str) -> None:
    count = columns.names.count(column)
    if count == 0:
        raise UsageError(
            f"{option} {column}: {name} has no such column{nearest(column, columns.names)}; {_listed(columns)}"
        )
    if count > 1:
        raise UsageError(f"{option} {column}: {name} has {count} columns of this name")


def _listed(columns: pa.Schema) -> str:
    return f"its columns are {', '.join(columns.names)}"


def _is_text(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _plain(kind: pa.DataType) -> pa.DataType | None:
    """The type as every reader of Parquet knows it, or None where there is none such."""
    types = pa.types
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if _is_text(kind):
        return pa.string()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _plain(kind.value_type)
        if inner is None:
            return None
        return pa.list_(inner, kind.list_size) if types.is_fixed_size_list(kind) else pa.list_(inner)
    simple = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return kind if simple or types.is_decimal(kind) or types.is_date(kind) or types.is_timestamp(kind) else None


def _read(path: Path, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of these columns, in this order."""
    if table_format(name) == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                yield batch.select(list(columns))
    elif table_format(name) == ".csv":
        options = pyarrow.csv.ConvertOptions(
            include_columns=list(columns), column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        )
        with pyarrow.csv.open_csv(
            path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=options
        ) as reader:
            for block in reader:
                for start in range(0, len(block), _BATCH_ROWS):
                    yield block.slice(start, _BATCH_ROWS)
    else:
        yield from _read_lines(path)


def _read_lines(path: Path) -> Iterator[pa.RecordBatch]:
    lines: list[str] = []
    with path.open(encoding="utf-8-sig", newline=None) as file:
        for line in file:
            if text := line.strip():
                lines.append(text)
            if len(lines) == _BATCH_ROWS:
                yield pa.record_batch([lines], names=["uri"])
                lines = []
    if lines:
        yield pa.record_batch([lines], names=["uri"])


def _without_query(name: str) -> str:
    return name.partition("?")[0] if scheme(name) in ("http", "https") else name


def _absolute(uri: str | None, folder: str) -> str | None:
    if not uri or scheme(uri) or uri.startswith(("/", "file:")):
        return uri or None
    # Only for "./" and "../": in a URI they would be part of the key.
    return folder + uri if scheme(folder) and not uri.startswith(".") else _join(folder, uri)


def _join(folder: str, path: str) -> str:
    kind = scheme(folder)
    if not kind:
        return posixpath.normpath(folder + path)
    head, _, rest = folder[len(f"{kind}://") :].partition("/")
    return f"{kind}://{head}{posixpath.normpath('/' + rest + path)}"
