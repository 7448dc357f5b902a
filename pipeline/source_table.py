"""Tables of URIs as sources: a local file for as long as one is read, and the columns that are kept."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.origin import Kind, Origin
from pipeline.table import table_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from pipeline.config import SourceConfig


@contextmanager
def local_table(origin: Origin) -> Iterator[Path]:
    """The table as a local file, for as long as the context lasts. Raises StorageError where it cannot be fetched."""
    if origin.local is not None:
        yield origin.local
        return
    with tempfile.TemporaryDirectory(prefix="raysight-table-") as folder:
        path = Path(folder) / "table"
        origin.store.get_file(origin.key, path)
        yield path


def table_kept_fields(origins: Sequence[Origin], listing: SourceConfig) -> list[pa.Field]:
    """The fields of the columns to keep, the same in all tables. Raises UsageError and StorageError."""
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
        with local_table(origin) as path:
            for field in table_fields(path, origin.name, listing)[1]:
                known, where = found.setdefault(field.name, (field, origin.name))
                if known.type != field.type:
                    raise UsageError(
                        f"--keep {field.name}: {where} has {known.type} there, {origin.name} {field.type};"
                        " write them with one type"
                    )
    return [found[name][0] for name in listing.keep]
