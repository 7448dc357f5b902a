from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import tracemalloc
from itertools import pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UnavailableError
from pipeline.local import LocalStore
from pipeline.manifest import Cut, ManifestReader, load_manifest, write_manifest
from pipeline.storage import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter([ObjectInfo(key, 0, "") for key in self.objects if key.startswith(prefix)])


def objects(sizes: Iterable[int]) -> Iterator[ObjectInfo]:
    return (ObjectInfo(f"{number}", size, f"v{number}") for number, size in enumerate(sizes))


def uri(key: str) -> str:
    return f"s3://bucket/{key}"


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=120),
    cut=st.builds(Cut, st.integers(1, 10), st.integers(1, 100), st.integers(1, 30)),
)
def test_every_object_is_in_one_chunk_in_order_and_the_bounds_are_kept(sizes: list[int], cut: Cut) -> None:
    store = Memory()
    manifest = write_manifest(store, "s3://bucket/", objects(sizes), uri, cut)
    reader = ManifestReader(store)
    chunks = [
        [reader.chunk(shard, chunk).to_pylist() for chunk in range(len(listed.chunks))]
        for shard, listed in enumerate(manifest.shards)
    ]
    rows = [row for shard in chunks for chunk in shard for row in chunk]
    assert rows == [{"uri": uri(str(n)), "size": size, "etag": f"v{n}"} for n, size in enumerate(sizes)]
    assert [tuple(map(len, shard)) for shard in chunks] == [shard.chunks for shard in manifest.shards]
    for shard in chunks:
        assert 0 < sum(map(len, shard)) <= cut.shard_rows
        for chunk in shard:
            assert 0 < len(chunk) <= cut.chunk_rows
            assert len(chunk) == 1 or sum(row["size"] for row in chunk) <= cut.chunk_bytes
    assert (manifest.rows, manifest.chunks, manifest.bytes) == (len(sizes), sum(map(len, chunks)), sum(sizes))


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=120),
    cut=st.builds(Cut, st.integers(1, 10), st.integers(1, 100), st.integers(1, 30)),
)
def test_no_chunk_and_no_shard_is_cut_sooner_than_it_must_be(sizes: list[int], cut: Cut) -> None:
    store = Memory()
    manifest = write_manifest(store, "s3://bucket/", objects(sizes), uri, cut)
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
    manifest = write_manifest(store, "s3://bucket/", objects([1] * 10), uri, Cut(3, 100, 6))
    files = sorted((tmp_path / "_raysight/manifest").glob("*.parquet"))
    assert [file.name for file in files] == ["shard-000000.parquet", "shard-000001.parquet"]
    groups = [pq.read_metadata(file) for file in files]
    assert [tuple(g.row_group(i).num_rows for i in range(g.num_row_groups)) for g in groups] == [(3, 3), (3, 1)]
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == [s.sha256 for s in manifest.shards]
    counted = duckdb.sql(f"select count(distinct uri), sum(size) from '{files[0].parent}/*.parquet'").fetchall()
    assert counted == [(10, 10)]


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    assert load_manifest(store) is None
    written = write_manifest(store, "s3://bucket/", objects([1] * 10), uri, Cut(3, 100, 6), limit=10)
    assert load_manifest(store) == written
    assert (written.source, written.limit) == ("s3://bucket/", 10)


def test_an_empty_listing_is_a_manifest_of_nothing(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    write_manifest(store, "s3://bucket/", [], uri, Cut(3, 100, 6))
    manifest = load_manifest(store)
    assert manifest is not None
    assert (manifest.rows, manifest.shards) == (0, ())


def test_the_marker_is_written_last() -> None:
    store = Memory()
    write_manifest(store, "s3://bucket/", objects([1] * 10), uri, Cut(3, 100, 6))
    assert store.order == ["_raysight/manifest/shard-000000.parquet", "_raysight/manifest/shard-000001.parquet", MARKER]


def test_progress_is_told_shard_by_shard() -> None:
    told: list[int] = []
    write_manifest(Memory(), "s3://bucket/", objects([1] * 10), uri, Cut(3, 100, 6), progress=told.append)
    assert told == [6, 10]


def test_a_listing_that_fails_commits_nothing_and_its_leftovers_go_with_the_next(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))

    def broken() -> Iterator[ObjectInfo]:
        yield from objects([1] * 20)
        raise UnavailableError("the store went away")

    with pytest.raises(UnavailableError, match="went away"):
        write_manifest(store, "s3://bucket/", broken(), uri, Cut(3, 100, 6))
    assert load_manifest(store) is None
    assert len(list(store.list_objects())) == 2
    write_manifest(store, "s3://bucket/", objects([1] * 5), uri, Cut(3, 100, 6))
    assert sorted(item.key for item in store.list_objects()) == [MARKER, "_raysight/manifest/shard-000000.parquet"]


def test_a_listing_whose_process_was_killed_is_redone_from_the_start(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pipeline.local import LocalStore
from pipeline.manifest import Cut, write_manifest
from pipeline.storage import ObjectInfo

def listing():
    for number in range(100):
        if number == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        yield ObjectInfo(f"old-{number}", 1, "v")

write_manifest(LocalStore(sys.argv[1]), "s3://bucket/", listing(), str, Cut(3, 100, 6))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("_raysight/manifest/shard-*.parquet"))) == 7
    store = LocalStore(str(tmp_path))
    assert load_manifest(store) is None
    manifest = write_manifest(store, "s3://bucket/", objects([1] * 10), uri, Cut(3, 100, 6))
    assert load_manifest(store) == manifest
    rows = duckdb.sql(f"select uri from '{tmp_path}/_raysight/manifest/*.parquet'").fetchall()
    assert sorted(rows) == sorted((uri(str(number)),) for number in range(10))


def test_memory_is_that_of_a_shard_however_long_the_listing() -> None:
    """Python's own allocations at their peak; ten times the objects must not cost what ten times the rows would."""

    def peak(count: int) -> int:
        tracemalloc.start()
        write_manifest(Memory(keep=False), "s3://bucket/", objects(repeat(1, count)), uri, Cut(256, 1 << 20, 2048))
        bytes_at_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_at_peak

    peak(1000)  # what is imported and cached on the way
    small, large = peak(10_000), peak(100_000)
    assert large < 1.5 * small
