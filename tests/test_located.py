"""Objects of several stores by their URIs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.config import StorageConfig
from pipeline.errors import RejectError, UsageError
from pipeline.located import Located
from pipeline.storage import Fetched

if TYPE_CHECKING:
    from pathlib import Path

STORAGE = StorageConfig()


@pytest.fixture
def uris(tmp_path: Path) -> list[str]:
    """Files of two folders in turns; the first one is called like its content."""
    for name in ("a/1", "b/2", "a/3", "b/4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return [f"{tmp_path}/{name}" for name in ("a/1", "b/2", "a/3", "b/4")]


@pytest.mark.parametrize("roots", [["a"], ["a", "b"], []], ids=["one root", "two roots", "no root"])
def test_answers_come_in_the_order_of_the_uris_whichever_store_gives_them(
    roots: list[str], uris: list[str], tmp_path: Path
) -> None:
    located = Located([str(tmp_path / root) for root in roots], STORAGE)
    answers = located.fetch_many(uris, 100)
    assert [answer.data for answer in answers if isinstance(answer, Fetched)] == [b"a/1", b"b/2", b"a/3", b"b/4"]
    found = located.look_up([*uris, f"{tmp_path}/a/gone"])
    assert [info is not None for info in found] == [True] * 4 + [False]
    assert [info.version for info in found if info] == [
        answer.version for answer in answers if isinstance(answer, Fetched)
    ]


def test_a_root_that_is_gone_is_noticed_as_a_whole(uris: list[str], tmp_path: Path) -> None:
    located = Located([str(tmp_path / "a")], STORAGE)
    located.fetch_many(uris, 100)
    located.check()
    (tmp_path / "a").rename(tmp_path / "unplugged")
    with pytest.raises(UsageError, match="there is no folder"):
        located.check()


def test_what_is_no_uri_is_judged_in_its_place(uris: list[str]) -> None:
    located = Located([], STORAGE)
    mixed = [uris[0], "ftp://host/a.jpg", uris[1]]
    answers = located.fetch_many(mixed, 100)
    assert [answer.error if isinstance(answer, RejectError) else answer.data for answer in answers] == [
        b"a/1",
        "BadUri",
        b"b/2",
    ]
    assert [info is not None and info.seen for info in located.look_up(mixed)] == [True, False, True]
