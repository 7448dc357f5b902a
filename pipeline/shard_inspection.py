"""What ``verify`` asks of one sealed shard."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.columns import finite_rows, to_numpy
from pipeline.dataset import describe_kept
from pipeline.pieces import group_pieces
from pipeline.retire import applied_generation, without
from pipeline.seal import referred_rejects, rejects_name

if TYPE_CHECKING:
    from pipeline.dataset import DatasetInfo
    from pipeline.storage import Store

_SHOWN = 5
"""Examples named for each kind of problem."""


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        rows: feature rows.
        rejects: reject rows.
        expected: rows of the manifest.
        problems: one line each; none when all is well.
        unsettled: whether some of them are what a job leaves that was broken off, and its next run makes good.
    """

    rows: int = 0
    rejects: int = 0
    expected: int = 0
    problems: list[str] = field(default_factory=list)
    unsettled: bool = False

    def problem(self, text: str, examples: list[str] | None = None) -> None:
        """Notes a problem, with a few examples."""
        shown = examples or []
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        self.problems.append(text + (f": {', '.join(shown[:_SHOWN])}{more}" if shown else ""))


class ShardInspection:
    """One sealed shard under inspection."""

    def __init__(self, dest: Store, shard: int, report: Report) -> None:
        self._dest = dest
        self._shard = shard
        self._key = schema.features_shard(shard)
        self._report = report

    def check(
        self, listed: pa.Table, retired: list[tuple[int, pa.Table]], rejects: list[str], info: DatasetInfo
    ) -> None:
        """Compares a shard with what was listed, without what has left it (generation, rows).

        The shard lies in a temporary file meanwhile; of its features, one row group at most is in memory.

        Raises:
            ArrowInvalid: a file is not Parquet.
            OSError: a part of it is not.
        """
        with tempfile.TemporaryDirectory(prefix="raysight-verify-") as folder:
            path = Path(folder) / "features.parquet"
            self._dest.get_file(self._key, path)
            with pq.ParquetFile(path) as file:
                self._check(file, listed, retired, rejects, info)

    def _check(
        self,
        file: pq.ParquetFile,
        listed: pa.Table,
        retired: list[tuple[int, pa.Table]],
        rejects: list[str],
        info: DatasetInfo,
    ) -> None:
        said = schema.metadata(file.metadata)
        if (number := said.get("format")) != schema.FORMAT_VERSION:
            self._report.problem(f"{self._key} says format {number}, where the dataset has {schema.FORMAT_VERSION}")
        if said.get("fingerprint") != info.fingerprint.to_dict():
            self._report.problem(f"{self._key} has another fingerprint than the dataset")
        applied = applied_generation(file.metadata)
        if late := sum(len(rows) for number, rows in retired if number > applied):
            self._report.unsettled = True
            self._report.problem(f"{late} rows have still to leave shard {self._shard}")
        expected = functools.reduce(without, (rows for number, rows in retired if number <= applied), listed)
        features = [output.partition(":")[0] for output in info.fingerprint.outputs]
        table = file.read([name for name in file.schema_arrow.names if name not in features])
        rejected = self._rejects(file.metadata, rejects, schema.kept_fields(expected.schema))
        if not self._has_columns(self._key, table, schema.features_schema([])):
            return
        kept = expected.column_names[2:]
        if any(describe_kept(schema.kept_fields(part.schema)) != info.kept for part in (expected, table, rejected)):
            self._report.problem(f"shard {self._shard} should keep the columns {', '.join(info.kept) or '(none)'}")
            kept = []
        identities = [part.select(["uri", "etag", *kept]) for part in (table, rejected)]
        # A file that was written anew may call its columns nullable.
        found = pa.concat_tables(identities, promote_options="default")
        _compare_rows(self._shard, expected.select(["uri", "etag"]), found.select(["uri", "etag"]), self._report)
        _compare_kept(self._shard, expected, found, kept, self._report)
        for output in info.fingerprint.outputs:
            self._check_output(file, table["uri"], output)
        sizes = (table["width"], table["height"])
        if any(column.null_count or pc.any(pc.less(column, 1)).as_py() for column in sizes):
            self._report.problem(f"{self._key}: width or height is missing")
        self._report.rows += len(table)
        self._report.rejects += len(rejected)

    def _rejects(self, footer: pq.FileMetaData, found: list[str], kept: list[pa.Field]) -> pa.Table:
        """The rows of the rejects shard that the feature shard refers to."""
        key = referred_rejects(footer)
        wanted = [key] if key else []
        if found != wanted:
            self._report.unsettled |= set(wanted) < set(found)
            self._report.problem(f"rejects of shard {self._shard} should be {wanted}, but there are {found}")
        nothing = schema.rejects_schema(kept).empty_table()
        if key is None or key not in found:
            return nothing
        data = self._dest.get(key)
        if rejects_name(self._shard, data) != key:
            self._report.problem(f"{key} is not what its name says")
        table = pq.read_table(pa.BufferReader(data))
        if not self._has_columns(key, table, schema.REJECTS_SCHEMA):
            return nothing
        for name in ("stage", "error", "message"):
            if table[name].null_count:
                self._report.problem(f"{key} has rejects without {name}")
        return table

    def _has_columns(self, key: str, table: pa.Table, wanted: pa.Schema) -> bool:
        wrong = [
            f"{field.name}: {field.type}"
            for field in wanted
            if field.name not in table.column_names or table.schema.field(field.name).type != field.type
        ]
        if wrong:
            self._report.problem(f"{key} lacks columns", wrong)
        return not wrong

    def _check_output(self, file: pq.ParquetFile, uris: pa.ChunkedArray, output: str) -> None:
        """One feature column: type, width, no nulls, all finite."""
        name, columns = output.partition(":")[0], file.schema_arrow
        if name not in columns.names or not pa.types.is_fixed_size_list(columns.field(name).type):
            self._report.problem(f"{self._key}: there should be a column {output}")
            return
        if (found := schema.describe_output(columns.field(name))) != output:
            self._report.problem(f"{self._key}: there should be {output}, not {found}")
            return
        missing = row = 0
        wrong: list[str] = []
        for group in range(file.num_row_groups):
            for piece in group_pieces(file, group, [name]):
                column = piece[name].combine_chunks()
                missing += column.null_count
                if not column.null_count:
                    indices = row + np.flatnonzero(~finite_rows(to_numpy(column)))
                    wrong += uris.take(pa.array(indices)).to_pylist()
                row += len(column)
        if missing:
            self._report.problem(f"{self._key}: {missing} rows have no {name}")
        if wrong:
            self._report.problem(f"{self._key}: {name} is not finite", wrong)


def _compare_rows(shard: int, expected: pa.Table, found: pa.Table, report: Report) -> None:
    want, have = (
        Counter(zip(*(t[name].to_pylist() for name in t.column_names), strict=True)) for t in (expected, found)
    )
    if missing := want - have:
        report.problem(f"shard {shard} lacks {missing.total()} rows", [uri for uri, _ in missing.elements()])
    if extra := have - want:
        report.problem(f"shard {shard} has {extra.total()} rows too many", [uri for uri, _ in extra.elements()])


def _compare_kept(shard: int, expected: pa.Table, found: pa.Table, kept: list[str], report: Report) -> None:
    """Kept values are those of the manifest, whatever their types."""
    if not kept:
        return
    want, have = ({row["uri"]: repr(row) for row in table.to_pylist()} for table in (expected, found))
    if wrong := [uri for uri in want.keys() & have.keys() if want[uri] != have[uri]]:
        report.problem(f"shard {shard} has other values in {', '.join(kept)} than the manifest", sorted(wrong))
