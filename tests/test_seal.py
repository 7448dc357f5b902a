from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import duckdb
import pyarrow.parquet as pq
import pytest
from datasets import FINGERPRINT, FailingStore, Numbers, numbers, vector
from world import World

from pipeline.config import StorageConfig
from pipeline.cut import Cut
from pipeline.errors import NotFoundError, RaysightError
from pipeline.local import LocalStore
from pipeline.plan import Plan
from pipeline.seal import clean_up
from pipeline.storage import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from s3_server import Bucket

CUT = Cut(chunk_rows=3, chunk_bytes=1000, shard_rows=7)  # shards of 3 + 3 rows, the last one of 2
REJECTED = (1, 2, 4, 6)


@pytest.fixture
def dataset(tmp_path: Path) -> Numbers:
    return numbers(LocalStore(str(tmp_path)), 8, CUT, REJECTED)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows_of(folder: Path, kind: str) -> list[tuple[object, ...]]:
    if not list(folder.glob(f"{kind}/*.parquet")):
        return []
    column = "embedding" if kind == "features" else "message"
    return duckdb.sql(f"select uri, {column} from '{folder}/{kind}/*.parquet' order by uri").fetchall()


def assert_whole(folder: Path, rows: int, rejected: tuple[int, ...]) -> None:
    """Every row exactly once, in the features or the rejects, with its value."""
    features = [(f"/nowhere/image-{n}", vector(n)) for n in range(rows) if n not in rejected]
    assert sorted(rows_of(folder, "features")) == sorted(features)
    assert sorted(rows_of(folder, "rejects")) == sorted((f"/nowhere/image-{n}", f"row {n}") for n in rejected)


def test_a_sealed_shard_holds_each_row_once_and_the_chunks_are_gone(tmp_path: Path, dataset: Numbers) -> None:
    for shard in range(2):
        dataset.commit_all(shard)
        dataset.seal(shard)
    assert_whole(tmp_path, 8, REJECTED)
    assert not list(tmp_path.glob("_raysight/chunks/**/*.parquet"))


def test_each_chunk_becomes_a_row_group_in_the_manifests_order(tmp_path: Path, dataset: Numbers) -> None:
    dataset.commit_all(0)
    dataset.seal(0)
    file = pq.ParquetFile(tmp_path / "features/shard-000000.parquet")
    groups = [file.read_row_group(group)["uri"].to_pylist() for group in range(file.num_row_groups)]
    assert groups == [["/nowhere/image-0"], ["/nowhere/image-3", "/nowhere/image-5"]]


def test_the_metadata_names_the_fingerprint_and_a_digest_of_the_rejects(tmp_path: Path, dataset: Numbers) -> None:
    dataset.commit_all(0)
    dataset.seal(0)
    values = json.loads(pq.read_metadata(tmp_path / "features/shard-000000.parquet").metadata[b"raysight"])
    (rejects,) = (tmp_path / "rejects").iterdir()
    digest = hashlib.sha256(rejects.read_bytes()).hexdigest()[:16]
    assert rejects.name == f"shard-000000-{digest}.parquet"
    assert values == {
        "format": 2,
        "fingerprint": FINGERPRINT.to_dict(),
        "shard": 0,
        "rows": 3,
        "rejects": 3,
        "rejects_digest": digest,
        "generation": 1,
    }


def test_the_metadata_of_new_and_rewritten_shards_names_the_generation(tmp_path: Path) -> None:
    world = World(tmp_path)
    said: list[dict[int, int]] = []
    for number in range(3):  # a first generation, and two retries of what stays a reject
        world.write(0, f"{number}.png", b"corrupt")
        world.extract(retry=number > 0)
        shards = sorted((world.dest / "features").iterdir())
        texts = [pq.read_metadata(path).metadata[b"raysight"] for path in shards]
        said.append({shard: json.loads(text)["generation"] for shard, text in enumerate(texts)})
    assert said == [{0: 1}, {0: 2, 1: 2}, {0: 2, 1: 3, 2: 3}]


def test_the_rejects_are_there_before_the_features(tmp_path: Path, dataset: Numbers) -> None:
    dataset.commit_all(0)
    with pytest.raises(FailingStore.DiedError):
        dataset.seal(0, FailingStore(dataset.dest, writes=1))
    assert [name for name in names(tmp_path) if not name.startswith("_raysight")] == [
        f"rejects/{path.name}" for path in (tmp_path / "rejects").iterdir()
    ]


def test_the_chunks_are_there_until_the_features_are(tmp_path: Path, dataset: Numbers) -> None:
    dataset.commit_all(0)
    with pytest.raises(FailingStore.DiedError):
        dataset.seal(0, FailingStore(dataset.dest, writes=0, below="features/"))
    assert len(list(tmp_path.glob("_raysight/chunks/shard-000000/*.parquet"))) == 2


def test_a_shard_of_rejects_alone_gives_an_empty_feature_shard_with_its_columns(tmp_path: Path) -> None:
    dataset = numbers(LocalStore(str(tmp_path)), 3, CUT, (0, 1, 2))
    dataset.commit_all(0)
    dataset.seal(0)
    assert_whole(tmp_path, 3, (0, 1, 2))
    columns = duckdb.sql(f"describe select * from '{tmp_path}/features/*.parquet'").fetchall()
    assert ("embedding", "FLOAT[]") in [column[:2] for column in columns]


def test_a_shard_without_rejects_has_no_rejects_file(tmp_path: Path) -> None:
    dataset = numbers(LocalStore(str(tmp_path)), 5, CUT)
    dataset.commit_all(0)
    dataset.seal(0)
    assert_whole(tmp_path, 5, ())
    assert not (tmp_path / "rejects").exists()


def test_a_chunk_of_the_wrong_length_is_refused_by_name(tmp_path: Path, dataset: Numbers) -> None:
    dataset.commit_all(0)
    chunks = tmp_path / "_raysight/chunks/shard-000000"
    other = numbers(LocalStore(str(tmp_path / "other")), 2, CUT)
    other.commit(0, 0)
    (tmp_path / "other/_raysight/chunks/shard-000000/00000.parquet").replace(chunks / "00001.parquet")
    with pytest.raises(RaysightError, match=r"00001\.parquet has 2 rows, the manifest 3; delete"):
        dataset.seal(0)
    assert rows_of(tmp_path, "features") == []


def test_a_missing_chunk_is_an_error_not_a_short_shard(tmp_path: Path, dataset: Numbers) -> None:
    dataset.commit(0, 0)
    with pytest.raises(NotFoundError, match=r"00001\.parquet"):
        dataset.seal(0)
    assert rows_of(tmp_path, "features") == []


def test_sealing_again_changes_nothing(tmp_path: Path, dataset: Numbers) -> None:
    dataset.commit_all(0)
    dataset.seal(0)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)}
    dataset.seal(0)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)} == before


def test_who_seals_second_with_other_values_changes_nothing(tmp_path: Path, dataset: Numbers) -> None:
    """A zombie has read other chunks of its own; by the time it seals, the shard is there."""

    class Slow(LocalStore):
        def put_file(self, key: str, path: Path, *, replace: bool = True) -> bool:
            dataset.commit_all(0)
            dataset.seal(0)  # the rightful job, while the zombie slept
            return super().put_file(key, path, replace=replace)

    for chunk in range(2):
        dataset.commit(0, chunk, salt=100)
    dataset.seal(0, Slow(str(tmp_path)))
    dataset.commit_all(1)
    dataset.seal(1)
    assert_whole(tmp_path, 8, REJECTED)


def test_late_chunks_of_a_sealed_shard_give_it_no_second_rejects(tmp_path: Path, dataset: Numbers) -> None:
    dataset.commit_all(0)
    dataset.seal(0)
    before = names(tmp_path)
    Numbers(dataset.dest, dataset.manifest, frozenset({0, 1})).commit_all(0)  # a zombie could not decode other images
    dataset.seal(0)
    assert names(tmp_path) == before


def test_who_finds_the_chunks_gone_because_another_has_sealed_them_is_done(tmp_path: Path, dataset: Numbers) -> None:
    class Overtaken(LocalStore):
        def get(self, key: str) -> bytes:
            dataset.seal(0)
            return super().get(key)

    dataset.commit_all(0)
    dataset.seal(0, Overtaken(str(tmp_path)))
    dataset.commit_all(1)
    dataset.seal(1)
    assert_whole(tmp_path, 8, REJECTED)


def test_a_foreign_file_whose_name_begins_like_the_shards_does_not_make_it_sealed(
    tmp_path: Path, dataset: Numbers
) -> None:
    dataset.dest.put("features/shard-000000.parquet.old", b"a copy that somebody made")
    for shard in range(2):
        dataset.commit_all(shard)
        dataset.seal(shard)
    assert_whole(tmp_path, 8, REJECTED)


@pytest.mark.parametrize("torn", [False, True], ids=["lost", "carried out, but not answered"])
@pytest.mark.parametrize("writes", range(9))
def test_a_death_at_any_write_and_a_rerun_give_each_row_once(tmp_path: Path, writes: int, torn: bool) -> None:
    """Commits, rejects, features, deletions: the process dies at one of them, a new one goes on from the names."""
    dataset = numbers(LocalStore(str(tmp_path)), 8, CUT, REJECTED)
    dying = FailingStore(dataset.dest, writes, torn=torn)

    def work(store: LocalStore) -> None:
        mine = Numbers(store, dataset.manifest, dataset.rejected)
        plan = Plan.survey(store, dataset.manifest)
        for shard, chunks in plan.pending():
            for chunk in chunks:
                mine.commit(shard, int(chunk))
                plan.commit(shard, int(chunk))
        for shard in plan.sealable():
            mine.seal(shard)
            plan.seal(shard)
        clean_up(store, plan.sealed)

    with pytest.raises(FailingStore.DiedError):
        work(dying)
    uris = [uri for uri, _ in rows_of(tmp_path, "features")]
    assert len(uris) == len(set(uris))  # not at any moment twice
    work(dataset.dest)
    assert_whole(tmp_path, 8, REJECTED)
    assert not list(tmp_path.glob("_raysight/chunks/**/*.parquet"))


def test_a_chunk_that_comes_after_the_seal_is_ignored_and_cleaned(tmp_path: Path, dataset: Numbers) -> None:
    for shard in range(2):
        dataset.commit_all(shard)
        dataset.seal(shard)
    dataset.commit(0, 1, salt=100)
    plan = Plan.survey(dataset.dest, dataset.manifest)
    assert (plan.pending(), plan.sealable()) == ([], [])
    assert clean_up(dataset.dest, plan.sealed) == 1
    assert_whole(tmp_path, 8, REJECTED)
    assert not list(tmp_path.glob("_raysight/chunks/**/*.parquet"))


def test_cleaning_leaves_alone_what_belongs_to_a_shard_that_is_not_sealed(tmp_path: Path, dataset: Numbers) -> None:
    for shard in range(2):
        dataset.commit_all(shard)
    dataset.seal(0)
    with pytest.raises(FailingStore.DiedError):
        dataset.seal(1, FailingStore(dataset.dest, writes=0, below="features/"))
    assert len(list((tmp_path / "rejects").iterdir())) == 2
    assert clean_up(dataset.dest, {0}) == 0
    dataset.seal(1)
    assert_whole(tmp_path, 8, REJECTED)


@pytest.mark.parametrize("rejected", [REJECTED, ()], ids=["beside the right ones", "where there should be none"])
def test_rejects_that_no_shard_refers_to_are_cleaned(tmp_path: Path, rejected: tuple[int, ...]) -> None:
    dataset = numbers(LocalStore(str(tmp_path)), 8, CUT, rejected)
    for shard in range(2):
        dataset.commit_all(shard)
        dataset.seal(shard)
    other = numbers(LocalStore(str(tmp_path / "other")), 8, CUT, (0, 1))
    other.commit_all(0)
    other.seal(0)
    (late,) = (tmp_path / "other/rejects").iterdir()
    (tmp_path / "rejects").mkdir(exist_ok=True)
    late.replace(tmp_path / "rejects" / late.name)
    assert clean_up(dataset.dest, {0, 1}) == 1
    assert_whole(tmp_path, 8, rejected)


def test_what_a_killed_writer_left_half_written_is_cleaned(tmp_path: Path, dataset: Numbers) -> None:
    for shard in range(2):
        dataset.commit_all(shard)
        dataset.seal(shard)
    whole = names(tmp_path)
    for folder in ("features", "rejects", "_raysight", "_raysight/chunks/shard-000001"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / ".raysight-partial-host-1-abcd").write_bytes(b"half")
    outside = tmp_path / "photos/.raysight-partial-of-somebody-else"
    outside.parent.mkdir()
    outside.write_bytes(b"")
    assert clean_up(dataset.dest, {0, 1}) == 4
    assert names(tmp_path) == sorted([*whole, "photos/.raysight-partial-of-somebody-else"])


@pytest.mark.parametrize("conditional", [True, False], ids=["with conditional puts", "without"])
def test_a_bucket_is_sealed_and_cleaned_like_a_folder(bucket: Bucket, conditional: bool) -> None:
    bucket.server.set_faults(no_conditional_puts=not conditional)
    dataset = numbers(open_store(f"{bucket.url}/data", StorageConfig()), 8, CUT, REJECTED)
    for shard in range(2):
        dataset.commit_all(shard)
        dataset.seal(shard)
    dataset.commit(0, 0, salt=100)
    before = bucket.get("data/features/shard-000000.parquet")
    dataset.seal(0)
    assert bucket.get("data/features/shard-000000.parquet") == before
    assert clean_up(dataset.dest, {0, 1}) == 0
    assert bucket.keys("data/_raysight/chunks") == []
    assert len(bucket.keys("data/rejects/")) == 2
