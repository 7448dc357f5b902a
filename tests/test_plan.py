from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import schema
from pipeline.local import LocalStore
from pipeline.manifest import Generation, Manifest, ManifestShard, RetiredRows
from pipeline.plan import Plan, waves


def manifest(*shards: tuple[int, ...]) -> Manifest:
    listed = tuple(ManifestShard(chunks, "", "s3://bucket/", 1) for chunks in shards)
    generation = Generation(1, "listing", "now", None, ("s3://bucket/",), sum(shard.rows for shard in listed), 0)
    return Manifest(listed, (generation,))


def pending(plan: Plan) -> dict[int, list[int]]:
    return {shard: chunks.tolist() for shard, chunks in plan.pending()}


THREE = manifest((4, 4, 2), (4, 1), (3,))


def survey(folder: str, *keys: str) -> Plan:
    store = LocalStore(folder)
    for key in keys:
        store.put(key, b"never read: names say it all")
    return Plan.survey(store, THREE)


def test_of_a_new_dataset_everything_is_pending(tmp_path: object) -> None:
    plan = survey(str(tmp_path), "_raysight/dataset.json")
    assert pending(plan) == {0: [0, 1, 2], 1: [0, 1], 2: [0]}
    assert (plan.pending_chunks, plan.rows_done, plan.sealable()) == (6, 0, [])


def test_names_alone_say_what_is_done(tmp_path: object) -> None:
    plan = survey(
        str(tmp_path),
        schema.chunk_object(0, 1),
        schema.chunk_object(1, 0),
        schema.chunk_object(1, 1),
        schema.features_shard(2),
    )
    assert pending(plan) == {0: [0, 2]}
    assert plan.sealable() == [1]
    assert (plan.pending_chunks, plan.rows_done) == (2, 4 + 5 + 3)


def test_chunks_of_sealed_shards_and_of_no_shard_are_passed_over(tmp_path: object) -> None:
    plan = survey(
        str(tmp_path),
        schema.features_shard(1),
        schema.chunk_object(1, 0),
        schema.chunk_object(0, 99),
        schema.chunk_object(99, 0),
        schema.features_shard(99),
    )
    assert pending(plan) == {0: [0, 1, 2], 2: [0]}
    assert plan.rows_done == 5


@pytest.mark.parametrize(
    "key",
    [
        "features/shard-2.parquet",
        "features/shard-0000002.parquet",
        "features/shard-000002-0123456789abcdef.parquet",
        "features/shard-000002.parquet.tmp",
        "features/copy/shard-000002.parquet",
        "features/shard-00000٢.parquet",
        "features/Shard-000002.parquet",
        "rejects/shard-000002-0123456789abcdef.parquet",
        "_raysight/chunks/shard-000002/0.parquet",
        "_raysight/chunks/shard-2/00000.parquet",
        "_raysight/chunks/shard-000002/00000.parquet~",
    ],
)
def test_a_name_that_a_job_would_not_write_says_nothing(tmp_path: object, key: str) -> None:
    assert pending(survey(str(tmp_path), key))[2] == [0]


@given(
    shard=st.integers(0, 10**7),
    chunk=st.integers(0, 10**6),
    digest=st.text("0123456789abcdef", min_size=16, max_size=16),
)
def test_every_name_that_a_job_writes_is_understood(shard: int, chunk: int, digest: str) -> None:
    assert schema.parse_chunk(schema.chunk_object(shard, chunk)) == (shard, chunk)
    for name in (schema.manifest_shard(shard), schema.features_shard(shard), schema.rejects_shard(shard, digest)):
        assert schema.parse_shard(name) == shard


def test_rows_that_have_left_the_dataset_are_not_done() -> None:
    left = replace(THREE.generations[0], number=2, rows=0, retired=(RetiredRows(0, 2, ""), RetiredRows(1, 1, "")))
    plan = Plan(replace(THREE, generations=(*THREE.generations, left)), {0, 1}, iter(()))
    assert plan.rows_done == (10 - 2) + (5 - 1)


def test_the_chunk_that_makes_a_shard_whole_is_told_once() -> None:
    plan = Plan(THREE, set(), iter(()))
    assert [plan.commit(1, 0), plan.commit(1, 0), plan.commit(1, 1), plan.commit(1, 1)] == [False, False, True, False]
    plan.seal(1)
    assert [plan.commit(1, 0), plan.commit(7, 0), plan.commit(0, 3)] == [False, False, False]
    assert (plan.sealed, plan.sealable(), plan.rows_done) == ({1}, [], 5)


@given(st.data())
def test_commits_in_any_order_end_with_every_shard_sealable_and_nothing_pending(data: st.DataObject) -> None:
    everything = [(shard, chunk) for shard, listed in enumerate(THREE.shards) for chunk in range(len(listed.chunks))]
    order = data.draw(st.permutations(everything))
    done = data.draw(st.integers(0, len(order)))
    plan = Plan(THREE, set(), iter(order[:done]))
    assert sorted((s, c) for s, chunks in pending(plan).items() for c in chunks) == sorted(order[done:])
    assert plan.rows_done == sum(THREE.shards[shard].chunks[chunk] for shard, chunk in order[:done])
    for shard, chunk in order[done:]:
        plan.commit(shard, chunk)
    assert (pending(plan), plan.sealable(), plan.rows_done) == ({}, [0, 1, 2], THREE.rows)


@given(st.lists(st.sets(st.integers(0, 9), min_size=1), max_size=6), st.integers(1, 12))
def test_waves_hold_every_pending_chunk_once_in_order_and_are_full_but_for_the_last(
    shards: list[set[int]], size: int
) -> None:
    missing = [(shard, sorted(chunks)) for shard, chunks in enumerate(shards)]
    cut = [
        [(shard, int(chunk)) for shard, chunks in wave for chunk in chunks]
        for wave in waves([(shard, np.array(chunks)) for shard, chunks in missing], size)
    ]
    assert [pair for wave in cut for pair in wave] == [(shard, chunk) for shard, chunks in missing for chunk in chunks]
    assert all(len(wave) == size for wave in cut[:-1])
    assert all(0 < len(wave) <= size for wave in cut)
