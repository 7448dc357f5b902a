"""How a job brings its manifest up to date: what it looks at first, and where a retry looks rows up."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from datasets import numbers
from world import CUT, World

from pipeline.config import Config, JobConfig
from pipeline.errors import InterruptedJobError, UsageError
from pipeline.local import LocalStore
from pipeline.manifest import load_manifest
from pipeline.renewal import listing, retrying

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three objects, none of them extracted yet."""
    return World(tmp_path).fill(3)


def config(world: World, **job: int | bool) -> Config:
    return Config((str(world.sources[0]),), str(world.dest), job=JobConfig(**job))  # type: ignore[arg-type]


def test_a_first_listing_is_of_the_sources_with_their_limit_and_counts_its_requests(world: World) -> None:
    requests: Counter[str] = Counter()
    dest = LocalStore(str(world.dest))
    renew = listing(config(world, limit=2), dest, threading.Event(), world.said.append, requests)
    manifest = renew(None, CUT)
    assert (manifest.rows, manifest.last.limit, manifest.sources) == (2, 2, (f"{world.sources[0]}/",))
    assert requests == {"list": 1}


def test_a_source_without_images_is_refused_at_first_and_is_no_error_of_a_dataset(world: World) -> None:
    world.extract()
    for path in world.sources[0].iterdir():
        path.unlink()
    dest = LocalStore(str(world.dest))
    manifest = load_manifest(dest)
    assert listing(config(world), dest, threading.Event(), print, Counter())(manifest, CUT) == manifest
    with pytest.raises(UsageError, match="holds no image"):
        listing(config(world), LocalStore(str(world.folder / "new")), threading.Event(), print, Counter())


def test_a_listing_that_is_stopped_commits_nothing(world: World) -> None:
    stop, dest = threading.Event(), LocalStore(str(world.dest))
    renew = listing(config(world), dest, stop, print, Counter())
    stop.set()
    with pytest.raises(InterruptedJobError, match="stopped while listing"):
        renew(None, CUT)
    assert load_manifest(dest) is None


def test_rows_are_retried_as_the_source_has_them_today(world: World) -> None:
    world.write(0, "1.png", b"corrupt")
    world.extract()
    world.write(0, "1.png", b"1001")
    dest = LocalStore(str(world.dest))
    manifest = retrying(config(world), dest, print)(load_manifest(dest), CUT)
    (info,) = LocalStore(str(world.sources[0])).look_up(["1.png"])
    assert info is not None
    shard = world.dest / f"_raysight/manifest/shard-{len(manifest.shards) - 1:06d}.parquet"
    (row,) = pq.read_table(shard).to_pylist()
    assert row == {"uri": f"{world.sources[0]}/1.png", "size": 4, "etag": info.version}


def test_where_nothing_was_listed_there_is_nothing_to_retry(world: World, tmp_path: Path) -> None:
    for folder in (world.dest, tmp_path / "nowhere"):  # a description without a manifest, and nothing at all
        with pytest.raises(UsageError, match="holds no raysight dataset whose source was listed; run extract"):
            retrying(config(world), LocalStore(str(folder)), print)
    numbers(LocalStore(str(tmp_path / "listed")), 3, CUT)
    retrying(config(world), LocalStore(str(tmp_path / "listed")), print)
