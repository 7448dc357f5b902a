"""Rejected rows that are tried again: what is listed of them the second time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from shards import CUT, Sealed

from pipeline.local import LocalStore
from pipeline.retry import retry_rejects
from pipeline.store import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

URIS = [f"/nowhere/image-{number}" for number in (1, 2, 4)]
AS_LISTED = [(10, "v1"), (10, "v2"), (10, "v4")]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda uri: ObjectInfo(uri, 99, f"new {uri[-1]}"), [(99, "new 1"), (99, "new 2"), (99, "new 4")]),
        (lambda _: None, AS_LISTED),
        (ObjectInfo.unseen, AS_LISTED),
    ],
    ids=["there", "gone", "not to be seen"],
)
def test_rejects_are_listed_anew_as_they_are_today_or_as_they_were_where_nobody_says(
    answer: Callable[[str], ObjectInfo | None], expected: list[tuple[int, str]], tmp_path: Path
) -> None:
    sealed = Sealed.make(LocalStore(str(tmp_path / "out")))
    asked: list[tuple[str, list[str]]] = []

    def look_up(source: str, uris: list[str]) -> list[ObjectInfo | None]:
        asked.append((source, list(uris)))
        return [answer(uri) for uri in uris]

    said: list[str] = []
    manifest = retry_rejects(sealed.dest, sealed.manifest, CUT, look_up, said.append)
    assert asked == [("/nowhere/", URIS)]
    rows = pq.read_table(tmp_path / "out/_raysight/manifest/shard-000002.parquet").to_pylist()
    assert [row["uri"] for row in rows] == URIS
    assert [(row["size"], row["etag"]) for row in rows] == expected
    assert (manifest.last.kind, manifest.last.retried, manifest.rows) == ("retry", 3, 8)
    assert said == ["3 rejected rows to try again"]


def test_without_rejects_there_is_nothing_to_retry(tmp_path: Path) -> None:
    sealed = Sealed.make(LocalStore(str(tmp_path / "out")))
    sealed.retire(1, 2, 4)
    sealed.rewrite()
    said: list[str] = []
    assert retry_rejects(sealed.dest, sealed.manifest, CUT, lambda *_: [], said.append) is sealed.manifest
    assert said == ["no row was rejected; there is nothing to retry"]
