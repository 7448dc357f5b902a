"""What a listing changes in a dataset: the rows to extract, and the rows that leave.

Both sides lie in a local folder as Parquet, and DuckDB joins them within a bound of memory, spilling to the folder.
It is asked for row numbers alone; the rows themselves stay as pyarrow wrote them.
"""

# ruff: noqa: S608 — the statements hold our own names, and quoted ones

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.errors import UsageError
from pipeline.staged import ORIGIN, ROW, kept_columns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from pipeline.manifest import Manifest
    from pipeline.staged import Staged
    from pipeline.storage import Store

_DOWNLOADS = 8
_FILE = "raysight_file"  # a name that no kept column has
_SHARD = f"regexp_extract({_FILE}, '([0-9]+)[.]parquet$', 1)::INTEGER"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a listing found.

    Attributes:
        listed: rows of the listing, without those that name a uri again.
        duplicates: rows that name a uri again; the first one holds.
        new: rows of objects that the dataset does not hold.
        changed: rows of objects that it holds in another version, or with other kept columns.
        gone: rows of the dataset whose object is gone; not looked for in a listing that was cut short.
    """

    listed: int
    duplicates: int
    new: int
    changed: int
    gone: int


class Difference:
    """A listing beside the live rows of a dataset.

    Args:
        listing: written down.
        folder: local; what lies there is of the size of both.
        memory: bytes that DuckDB takes at most.
    """

    def __init__(self, listing: Staged, folder: Path, memory: int) -> None:
        self._listing = listing
        self._live = folder / "live"
        self._retired = folder / "retired"
        self._kept = listing.kept
        self._database = duckdb.connect(
            str(folder / "difference.duckdb"),
            config={
                "memory_limit": f"{memory // 2**20}MiB",
                "temp_directory": str(folder / "spill"),
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )

    def close(self) -> None:
        """Gives the memory back."""
        self._database.close()

    def fetch(self, dest: Store, manifest: Manifest) -> None:
        """Fetches the rows of the dataset and the lists of those that have left it.

        Raises:
            UsageError: its kept columns are not those of the listing.
        """
        self._live.mkdir()
        self._retired.mkdir()
        files = {schema.manifest_shard(n): self._live / f"{n:06d}.parquet" for n in range(len(manifest.shards))}
        for shard, parts in manifest.retirements().items():
            for number, _ in parts:
                files[schema.retired_rows(number, shard)] = self._retired / f"{number:06d}-{shard:06d}.parquet"
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            list(pool.map(dest.get_file, files.keys(), files.values()))
        for path in sorted(self._live.iterdir())[:1]:
            names = kept_columns(path)
            if sorted(names) != sorted(self._kept):
                raise UsageError(
                    f"{dest.root} keeps the columns {names}, this listing has {self._kept};"
                    " keep the same ones, or use another DEST"
                )

    def compare(self, manifest: Manifest | None, sources: Collection[str], *, prune: bool, whole: bool) -> Counts:
        """Joins the two.

        Args:
            manifest: of the dataset, fetched; None for a new one.
            sources: those that were listed; rows of others are never gone.
            prune: rows of objects that are gone are to leave, and none are to come.
            whole: False for a listing that was cut short, in which what is missing may still be there.
        """
        listing = f"read_parquet('{_quoted(self._listing.path)}')"
        self._run(f"CREATE TABLE firsts AS SELECT min({ROW}) AS n FROM {listing} GROUP BY uri")
        self._run(f"""
            CREATE TABLE listed AS
            SELECT n, uri, size, etag{self._kept_columns} FROM (SELECT {ROW} AS n, * FROM {listing})
            SEMI JOIN firsts USING (n)""")
        self._load_live(manifest, sources)
        names = ["etag", *(f"kept_{number}" for number in range(len(self._kept)))]
        differs = " OR ".join(f"listed.{name} IS DISTINCT FROM live.{name}" for name in names)
        # A table of URIs lists an object without an etag when it is not there, and with a size of -1 when nobody knows.
        self._run(f"""
            CREATE TABLE fates AS SELECT * FROM (
                SELECT live.shard, live.uri, live.etag, listed.n, CASE
                    WHEN listed.n IS NULL THEN CASE WHEN live.here AND {whole} THEN 'gone' END
                    WHEN listed.size < 0 THEN NULL
                    WHEN listed.etag = '' THEN CASE WHEN live.etag <> '' OR {prune} THEN 'gone' END
                    WHEN {differs} THEN 'changed' END AS reason
                FROM live LEFT JOIN listed USING (uri)
            ) WHERE reason IS NOT NULL""")
        self._run(f"""
            CREATE TABLE chosen AS
            SELECT n FROM (SELECT n, uri FROM listed WHERE etag <> '' OR size < 0 OR NOT {prune})
            ANTI JOIN live USING (uri)
            UNION ALL SELECT n FROM fates WHERE reason = 'changed'
            ORDER BY n""")
        listed = self._number("SELECT count(*) FROM listed")
        changed = self._number("SELECT count(*) FROM fates WHERE reason = 'changed'")
        return Counts(
            listed=listed,
            duplicates=self._listing.rows - listed,
            new=self._number("SELECT count(*) FROM chosen") - changed,
            changed=changed,
            gone=self._number("SELECT count(*) FROM fates WHERE reason = 'gone'"),
        )

    def _load_live(self, manifest: Manifest | None, sources: Collection[str]) -> None:
        if manifest is None or not manifest.shards:
            listing = f"read_parquet('{_quoted(self._listing.path)}')"
            self._run(f"""
                CREATE TABLE live AS
                SELECT 0 AS shard, true AS here, uri, etag{self._kept_columns} FROM {listing} LIMIT 0""")
            return
        here = [shard.source in sources for shard in manifest.shards]
        self._database.register("shards", pa.table({"shard": pa.array(range(len(here)), pa.int32()), "here": here}))
        self._run("CREATE TABLE retired (shard INTEGER, uri VARCHAR)")
        if manifest.retired:
            self._run(f"INSERT INTO retired SELECT {_SHARD}, uri FROM {_files(self._retired)}")
        self._run(f"""
            CREATE TABLE live AS
            SELECT shard, here, uri, etag{self._kept_columns}
            FROM (SELECT {_SHARD} AS shard, * FROM {_files(self._live)})
            ANTI JOIN retired USING (shard, uri) JOIN shards USING (shard)""")

    @property
    def _kept_columns(self) -> str:
        quoted = (name.replace('"', '""') for name in self._kept)
        return "".join(f', "{name}" AS kept_{number}' for number, name in enumerate(quoted))

    def chosen(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """(source, rows to extract), in the order of the listing."""
        for batch in self._listing.batches():
            first, last = batch[ROW][0].as_py(), batch[ROW][-1].as_py()
            query = f"SELECT n FROM chosen WHERE n BETWEEN {first} AND {last} ORDER BY n"
            rows = batch.take(pc.subtract(self._table(query)["n"], first).combine_chunks())
            for origin in pc.unique(rows[ORIGIN]).to_pylist():
                part = rows.filter(pc.equal(rows[ORIGIN], origin))
                yield self._listing.sources[origin], part.drop_columns([ROW, ORIGIN])

    def leaving(self, *, prune: bool) -> Iterator[tuple[int, pa.Table]]:
        """(shard, rows of RETIRED_SCHEMA that leave it); those that are gone only when the dataset is pruned."""
        reasons = "('changed', 'gone')" if prune else "('changed')"
        self._run(f"CREATE TABLE leaving AS SELECT * FROM fates WHERE reason IN {reasons} ORDER BY shard, uri")
        for shard in self._table("SELECT DISTINCT shard FROM leaving ORDER BY shard")["shard"].to_pylist():
            query = f"SELECT uri, etag, reason FROM leaving WHERE shard = {shard} ORDER BY uri"
            yield shard, self._table(query).cast(schema.RETIRED_SCHEMA)

    def empty_sources(self, manifest: Manifest, sources: Collection[str]) -> list[str]:
        """Sources that hold nothing any more, although the dataset has rows of them."""
        held = {shard.source for shard, rows in zip(manifest.shards, manifest.live_rows(), strict=True) if rows}
        return [source for source in sources if source in held and source not in self._listing.sources]

    def _run(self, statement: str) -> None:
        self._database.execute(statement)

    def _table(self, query: str) -> pa.Table:
        return self._database.sql(query).to_arrow_table()

    def _number(self, query: str) -> int:
        number: int = self._table(query).column(0)[0].as_py()
        return number


def _files(folder: Path) -> str:
    return f"read_parquet('{_quoted(folder)}/*.parquet', filename = '{_FILE}')"


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
