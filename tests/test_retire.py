"""Rows that leave a shard: its rewriting, broken off, repeated, and overtaken by a later run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from datasets import FINGERPRINT, FailingStore, Numbers
from shards import REJECTED, Sealed

from pipeline import schema
from pipeline.config import StorageConfig
from pipeline.dataset import load_info
from pipeline.errors import NotFoundError, RaysightError
from pipeline.inspection import check_structure
from pipeline.local import LocalStore
from pipeline.retire import unapplied
from pipeline.seal import clean_up, seal_shard
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.storage import Store


class Late:
    """A store whose rewrite is held up: before it lands, ``meanwhile`` happens."""

    def __init__(self, store: Store, meanwhile: Callable[[], None]) -> None:
        self._store = store
        self._meanwhile = meanwhile
        self.landed: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def replace_file(self, key: str, path: Path, version: str) -> bool:
        self._meanwhile()
        self.landed.append(self._store.replace_file(key, path, version))
        return self.landed[-1]


@pytest.fixture(params=["folder", "bucket", "bucket without conditional puts"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Sealed:
    if request.param == "folder":
        return Sealed.make(LocalStore(str(tmp_path / "out")))
    bucket = request.getfixturevalue("bucket")
    bucket.server.set_faults(no_conditional_puts=request.param != "bucket")
    return Sealed.make(open_store(f"{bucket.url}/out", StorageConfig()))


def test_rows_leave_features_and_rejects_and_all_else_stays(dataset: Sealed, tmp_path: Path) -> None:
    dataset.retire(0, 1)
    assert [part.shard for part in unapplied(dataset.dest, dataset.manifest)] == [0]
    dataset.rewrite()
    assert unapplied(dataset.dest, dataset.manifest) == []
    dataset.assert_holds(tmp_path, [2, 3, 4, 5, 6, 7])


def test_rejects_of_which_none_leaves_stay_where_they_are(dataset: Sealed, tmp_path: Path) -> None:
    before = [item.key for item in dataset.dest.list_objects("rejects/")]
    dataset.retire(0)
    dataset.rewrite()
    assert [item.key for item in dataset.dest.list_objects("rejects/")] == before
    dataset.assert_holds(tmp_path, [1, 2, 3, 4, 5, 6, 7])


def test_a_rewritten_shard_says_of_itself_what_it_holds_now(tmp_path: Path) -> None:
    dataset = Sealed.make(LocalStore(str(tmp_path / "out")))
    dataset.retire(0, 1)
    dataset.rewrite()
    text = pq.read_metadata(tmp_path / "out/features/shard-000000.parquet").metadata[b"raysight"]
    said = json.loads(text)
    (rejects,) = (tmp_path / "out/rejects").iterdir()
    assert (said["rows"], said["rejects"], said["generation"]) == (2, 2, 2)
    assert rejects.name == f"shard-000000-{said['rejects_digest']}.parquet"


def test_a_shard_can_lose_all_its_rejects_or_all_its_rows(dataset: Sealed, tmp_path: Path) -> None:
    dataset.retire(*REJECTED)
    dataset.rewrite()
    dataset.assert_holds(tmp_path, [0, 3, 5, 6, 7])
    dataset.retire(0, 3, 5)
    dataset.rewrite()
    dataset.assert_holds(tmp_path, [6, 7])


def test_rewriting_again_changes_nothing(dataset: Sealed, tmp_path: Path) -> None:
    dataset.retire(0, 1)
    dataset.rewrite()
    before = {item.key: item.version for item in dataset.dest.list_objects()}
    dataset.rewrite()
    assert {item.key: item.version for item in dataset.dest.list_objects()} == before


def test_a_zombie_that_rewrites_after_the_next_run_has_changes_nothing(dataset: Sealed, tmp_path: Path) -> None:
    dataset.retire(0, 1)
    zombie = Late(dataset.dest, dataset.rewrite)
    dataset.rewrite(zombie)  # type: ignore[arg-type]
    assert zombie.landed == [False]
    dataset.assert_holds(tmp_path, [2, 3, 4, 5, 6, 7])


def test_a_zombie_that_rewrites_generations_later_brings_no_row_back(dataset: Sealed, tmp_path: Path) -> None:
    """It has read the shard with the rows that leave since, and puts rejects that nothing refers to any more."""
    dataset.retire(0, 1)

    def two_more_runs() -> None:
        dataset.rewrite()
        dataset.retire(2, 3)
        dataset.rewrite()

    zombie = Late(dataset.dest, two_more_runs)
    dataset.rewrite(zombie, generation=2)  # type: ignore[arg-type]
    assert zombie.landed == [False]
    clean_up(dataset.dest, {0, 1})
    dataset.assert_holds(tmp_path, [4, 5, 6, 7])


def test_rejects_that_a_zombie_puts_back_count_for_nothing_and_go_with_the_next_run(
    dataset: Sealed, tmp_path: Path
) -> None:
    dataset.retire(0, 1)
    dataset.rewrite()
    (stale,) = (item.key for item in dataset.dest.list_objects("rejects/"))
    content = dataset.dest.get(stale)
    dataset.retire(2)
    dataset.rewrite()
    dataset.dest.put(stale, content)
    info = load_info(dataset.dest)
    assert info is not None
    (problem,) = check_structure(dataset.dest, info, dataset.manifest).problems
    assert stale in problem
    clean_up(dataset.dest, {0, 1})
    dataset.assert_holds(tmp_path, [3, 4, 5, 6, 7])


def test_a_zombie_that_seals_after_the_rewrite_brings_no_row_back(dataset: Sealed, tmp_path: Path) -> None:
    """It still knows the chunks of the shard as it was, values of another device among them."""
    dataset.retire(0, 1)
    dataset.rewrite()
    old = Numbers(dataset.dest, dataset.manifest, frozenset(REJECTED))
    for chunk in range(2):
        old.commit(0, chunk, salt=100)
    seal_shard(dataset.dest, 0, dataset.manifest.shards[0], FINGERPRINT)
    clean_up(dataset.dest, {0, 1})
    dataset.assert_holds(tmp_path, [2, 3, 4, 5, 6, 7])


@pytest.mark.parametrize("torn", [False, True], ids=["lost", "carried out, but not answered"])
@pytest.mark.parametrize("writes", range(3))
def test_a_death_at_any_write_loses_nothing_and_is_made_good(tmp_path: Path, writes: int, torn: bool) -> None:
    """Rejects, features, the old rejects: the process dies at one of them."""
    dataset = Sealed.make(LocalStore(str(tmp_path / "out")))
    dataset.retire(0, 1)
    with pytest.raises(FailingStore.DiedError):
        dataset.rewrite(FailingStore(dataset.dest, writes, torn=torn))
    live = {f"/nowhere/image-{n}" for n in (2, 3, 4, 5, 6, 7)}
    paths = [path for folder in ("features", "rejects") for path in (tmp_path / "out" / folder).iterdir()]
    assert live <= {uri for path in paths for uri in pq.ParquetFile(path).read(["uri"])["uri"].to_pylist()}
    if unapplied(dataset.dest, dataset.manifest):
        dataset.rewrite()
    clean_up(dataset.dest, {0, 1})
    dataset.assert_holds(tmp_path, [2, 3, 4, 5, 6, 7])


def test_rows_that_are_not_there_cannot_leave(tmp_path: Path) -> None:
    dataset = Sealed.make(LocalStore(str(tmp_path / "out")))
    dataset.retire(0, 7)  # 7 is in the other shard
    with pytest.raises(RaysightError, match="2 rows should leave shard 0, but it holds 1 of them; raysight verify"):
        dataset.rewrite()


def test_a_list_that_is_not_the_committed_one_is_not_followed(tmp_path: Path) -> None:
    dataset = Sealed.make(LocalStore(str(tmp_path / "out")))
    dataset.retire(0)
    key = schema.retired_rows(2, 0)
    content = dataset.dest.get(key)
    dataset.dest.put(key, content + b" ")
    with pytest.raises(RaysightError, match="is not the one that was committed"):
        dataset.rewrite()
    info = load_info(dataset.dest)
    assert info is not None
    assert check_structure(dataset.dest, info, dataset.manifest).problems == [
        f"{dataset.dest.uri(key)} is not the one that was committed"
    ]
    dataset.dest.delete([key])
    with pytest.raises(NotFoundError):
        dataset.rewrite()
    (problem,) = check_structure(dataset.dest, info, dataset.manifest).problems
    assert problem.startswith(f"{dataset.dest.uri(key)}: ")


def test_a_file_is_replaced_only_while_it_is_the_version_that_was_read(dataset: Sealed, tmp_path: Path) -> None:
    dest, mine = dataset.dest, tmp_path / "mine"
    mine.write_bytes(b"mine")
    dest.put("x", b"first")
    version = dest.get_file("x", tmp_path / "copy")
    dest.put("x", b"by somebody else")
    assert not dest.replace_file("x", mine, version)
    assert dest.get("x") == b"by somebody else"
    assert dest.replace_file("x", mine, dest.get_file("x", tmp_path / "copy"))
    assert dest.get("x") == b"mine"
    dest.delete(["x"])
    assert not dest.replace_file("x", mine, version)
