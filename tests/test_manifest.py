from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import chain, islice, pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cut import Cut
from pipeline.errors import UnavailableError, UsageError
from pipeline.generation import Listing, write_generation
from pipeline.local import LocalStore
from pipeline.manifest import ManifestReader, RetiredRows, load_manifest
from pipeline.schema import MANIFEST_MARKER, MANIFEST_SCHEMA, RETIRED_SCHEMA
from pipeline.storage import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

MARKER = "_raysight/manifest/committed.json"


class Memory:
    """As much of a store as a manifest needs, without a disk; can note the order of writes or keep nothing."""

    root = "memory:/"

    def __init__(self, *, keep: bool = True) -> None:
        self.objects: dict[str, bytes] = {}
        self.order: list[str] = []
        self._keep = keep

    def put(self, key: str, data: bytes) -> None:
        self.order.append(key)
        if self._keep:
            self.objects[key] = data

    def get(self, key: str) -> bytes:
        return self.objects[key]

    def uri(self, key: str) -> str:
        return self.root + key

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter([ObjectInfo(key, 0, "") for key in self.objects if key.startswith(prefix)])


SOURCE = "s3://bucket/"
LISTING = Listing((SOURCE,))

Rows = Iterator[tuple[str, pa.RecordBatch]]


def uri(number: int) -> str:
    return f"{SOURCE}{number}"


def rows(sizes: Iterable[int], batch: int = 7, source: str = SOURCE) -> Rows:
    """Objects of these sizes, in batches as a listing yields them."""
    numbered = enumerate(sizes)
    while part := list(islice(numbered, batch)):
        columns = [[f"{source}{n}" for n, _ in part], [size for _, size in part], [f"v{n}" for n, _ in part]]
        yield source, pa.record_batch(columns, schema=MANIFEST_SCHEMA)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=120),
    cut=st.builds(Cut, st.integers(1, 10), st.integers(1, 100), st.integers(1, 30)),
)
def test_every_object_is_in_one_chunk_in_order_and_the_bounds_are_kept(sizes: list[int], cut: Cut) -> None:
    store = Memory()
    manifest = write_generation(store, None, LISTING, rows(sizes), cut)
    reader = ManifestReader(store)
    chunks = [
        [reader.chunk(shard, chunk).to_pylist() for chunk in range(len(listed.chunks))]
        for shard, listed in enumerate(manifest.shards)
    ]
    found = [row for shard in chunks for chunk in shard for row in chunk]
    assert found == [{"uri": uri(n), "size": size, "etag": f"v{n}"} for n, size in enumerate(sizes)]
    assert [tuple(map(len, shard)) for shard in chunks] == [shard.chunks for shard in manifest.shards]
    for shard in chunks:
        assert 0 < sum(map(len, shard)) <= cut.shard_rows
        for chunk in shard:
            assert 0 < len(chunk) <= cut.chunk_rows
            assert len(chunk) == 1 or sum(row["size"] for row in chunk) <= cut.chunk_bytes
    assert (manifest.rows, manifest.chunks, manifest.last.bytes) == (len(sizes), sum(map(len, chunks)), sum(sizes))


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=120),
    cut=st.builds(Cut, st.integers(1, 10), st.integers(1, 100), st.integers(1, 30)),
)
def test_no_chunk_and_no_shard_is_cut_sooner_than_it_must_be(sizes: list[int], cut: Cut) -> None:
    store = Memory()
    manifest = write_generation(store, None, LISTING, rows(sizes), cut)
    reader = ManifestReader(store)
    for first, second in pairwise(
        reader.chunk(shard, chunk).to_pylist()
        for shard, listed in enumerate(manifest.shards)
        for chunk in range(len(listed.chunks))
    ):
        full = len(first) == min(cut.chunk_rows, cut.shard_rows)
        assert full or sum(row["size"] for row in first) + second[0]["size"] > cut.chunk_bytes
    for shard, following in pairwise(manifest.shards):
        assert shard.rows + following.chunks[0] > cut.shard_rows


def test_the_files_are_parquet_with_a_row_group_a_chunk_and_the_digest_of_the_marker(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    manifest = write_generation(store, None, LISTING, rows([1] * 10), Cut(3, 100, 6))
    files = sorted((tmp_path / "_raysight/manifest").glob("*.parquet"))
    assert [file.name for file in files] == ["shard-000000.parquet", "shard-000001.parquet"]
    groups = [pq.read_metadata(file) for file in files]
    assert [tuple(g.row_group(i).num_rows for i in range(g.num_row_groups)) for g in groups] == [(3, 3), (3, 1)]
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == [s.sha256 for s in manifest.shards]
    counted = duckdb.sql(f"select count(distinct uri), sum(size) from '{files[0].parent}/*.parquet'").fetchall()
    assert counted == [(10, 10)]


def test_a_shard_of_few_rows_has_a_bounded_number_of_chunks_all_the_same() -> None:
    manifest = write_generation(Memory(), None, LISTING, rows([1] * 10), Cut(1, 100, 1000, shard_chunks=4))
    assert [shard.chunks for shard in manifest.shards] == [(1,) * 4, (1,) * 4, (1,) * 2]


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    assert load_manifest(store) is None
    written = write_generation(store, None, Listing((SOURCE,), limit=10), rows([1] * 10), Cut(3, 100, 6))
    assert load_manifest(store) == written
    assert (written.sources, written.last.limit) == ((SOURCE,), 10)


@pytest.mark.parametrize(
    "content",
    [b'{"format": 2, "sha', b"[]", b'{"format": 2}', b'{"format": 2, "shards": [{"chunks": [1]}], "generations": []}'],
    ids=["cut off", "a list", "bare", "without fields"],
)
def test_a_damaged_marker_is_named_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    dest = LocalStore(str(tmp_path))
    dest.put(MANIFEST_MARKER, content)
    with pytest.raises(UsageError, match=f"^{dest.uri(MANIFEST_MARKER)} is damaged .*; put back a copy"):
        load_manifest(dest)


def test_an_empty_listing_is_a_manifest_of_nothing(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    write_generation(store, None, LISTING, [], Cut(3, 100, 6))
    manifest = load_manifest(store)
    assert manifest is not None
    assert (manifest.rows, manifest.shards) == (0, ())


def test_the_marker_is_written_last() -> None:
    store = Memory()
    write_generation(store, None, LISTING, rows([1] * 10), Cut(3, 100, 6))
    assert store.order == ["_raysight/manifest/shard-000000.parquet", "_raysight/manifest/shard-000001.parquet", MARKER]


def test_a_listing_that_fails_commits_nothing_and_its_leftovers_go_with_the_next(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))

    def broken() -> Rows:
        yield from rows([1] * 20)
        raise UnavailableError("the store went away")

    with pytest.raises(UnavailableError, match="went away"):
        write_generation(store, None, LISTING, broken(), Cut(3, 100, 6))
    assert load_manifest(store) is None
    assert len(list(store.list_objects())) == 2
    write_generation(store, None, LISTING, rows([1] * 5), Cut(3, 100, 6))
    assert sorted(item.key for item in store.list_objects()) == [MARKER, "_raysight/manifest/shard-000000.parquet"]


def test_a_listing_whose_process_was_killed_is_redone_from_the_start(tmp_path: Path) -> None:
    code = """
import os, signal, sys
import pyarrow as pa
from pipeline.cut import Cut
from pipeline.generation import Listing, write_generation
from pipeline.local import LocalStore
from pipeline.schema import MANIFEST_SCHEMA

def listing():
    for number in range(100):
        if number == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        yield "s3://bucket/", pa.record_batch([[f"old-{number}"], [1], ["v"]], schema=MANIFEST_SCHEMA)

write_generation(LocalStore(sys.argv[1]), None, Listing(("s3://bucket/",)), listing(), Cut(3, 100, 6))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("_raysight/manifest/shard-*.parquet"))) == 7
    store = LocalStore(str(tmp_path))
    assert load_manifest(store) is None
    manifest = write_generation(store, None, LISTING, rows([1] * 10), Cut(3, 100, 6))
    assert load_manifest(store) == manifest
    found = duckdb.sql(f"select uri from '{tmp_path}/_raysight/manifest/*.parquet'").fetchall()
    assert sorted(found) == sorted((uri(number),) for number in range(10))


def test_memory_is_that_of_a_shard_however_long_the_listing() -> None:
    """Python's and Arrow's allocations at their peak; ten times the rows must not cost ten times as much."""

    def peak(count: int) -> int:
        pool = pa.system_memory_pool()
        before, standard = pool.max_memory(), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        tracemalloc.start()
        write_generation(Memory(keep=False), None, LISTING, rows(repeat(1, count), 1000), Cut(256, 1 << 20, 2048))
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        pa.set_memory_pool(standard)
        return python + pool.max_memory() - before

    peak(1000)  # what is imported and cached on the way
    small, large = peak(10_000), peak(100_000)
    assert large < 1.5 * small


def test_a_shard_holds_rows_of_one_source_and_says_which() -> None:
    store, other = Memory(), "s3://other/"
    listing = chain(rows([1] * 5), rows([1] * 4, source=other))
    manifest = write_generation(store, None, Listing((SOURCE, other)), listing, Cut(3, 100, 6))
    assert [(shard.source, shard.chunks) for shard in manifest.shards] == [(SOURCE, (3, 2)), (other, (3, 1))]
    assert manifest.sources == (SOURCE, other)


def test_a_further_generation_adds_shards_and_leaves_those_before_as_they_were() -> None:
    store = Memory()
    first = write_generation(store, None, LISTING, rows([1] * 10), Cut(3, 100, 6))
    before = dict(store.objects)
    retired = pa.table([[uri(8), uri(9)], ["v8", "v9"], ["changed", "gone"]], schema=RETIRED_SCHEMA)
    second = write_generation(store, first, LISTING, rows([1] * 4), Cut(3, 100, 6), retired=[(1, retired)])
    assert load_manifest(store) == second
    assert second.shards[:2] == first.shards
    assert [(shard.chunks, shard.generation) for shard in second.shards[2:]] == [((3, 1), 2)]
    assert (second.rows, second.live_rows()) == (12, [6, 2, 4])
    assert (second.last.changed, second.last.gone, second.last.retried) == (1, 1, 0)
    assert {key: store.objects[key] for key in before if key != MARKER} == {
        key: data for key, data in before.items() if key != MARKER
    }
    (key,) = store.objects.keys() - before.keys() - {"_raysight/manifest/shard-000002.parquet"}
    assert key == "_raysight/manifest/retired-000002/shard-000001.parquet"
    assert second.retirements() == {1: [(2, RetiredRows(1, 2, hashlib.sha256(store.objects[key]).hexdigest()))]}


def test_what_an_unfinished_generation_left_goes_with_the_next(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    first = write_generation(store, None, LISTING, rows([1] * 4), Cut(3, 100, 6))
    retired = pa.table([[uri(0)], ["v0"], ["gone"]], schema=RETIRED_SCHEMA)

    def dying() -> Iterator[tuple[int, pa.Table]]:
        yield 0, retired
        raise UnavailableError("the store went away")

    with pytest.raises(UnavailableError):
        write_generation(store, first, LISTING, rows([1] * 20), Cut(3, 100, 6), retired=dying())
    assert load_manifest(store) == first
    second = write_generation(store, first, LISTING, rows([1] * 2), Cut(3, 100, 6))
    assert load_manifest(store) == second
    assert sorted(item.key for item in store.list_objects()) == [
        MARKER,
        "_raysight/manifest/shard-000000.parquet",
        "_raysight/manifest/shard-000001.parquet",
    ]
