"""``verify`` of datasets whose job was broken off: it says so, fails, and names the command that settles them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from datasets import FailingStore
from world import World

from pipeline.local import LocalStore
from pipeline.manifest import load_manifest
from serve.cli import main

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES = ("--sample", "0")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Twelve objects, extracted into three shards, one of them rejected."""
    made = World(tmp_path / "two words")
    for number in range(12):
        made.write(0, f"{number:02d}.png", b"%d" % number if number else b"corrupt")
    made.extract()
    return made


def change(world: World) -> None:
    """A changed object, a new one, and one that is gone."""
    world.write(0, "03.png", b"33")
    world.write(0, "new.png", b"44")
    (world.sources[0] / "05.png").unlink()


class Killed(Exception):  # noqa: N818 — not an error
    """The end of the job's process."""


class Dying:
    """A store whose process dies before its first write of this kind to an object whose name begins so."""

    def __init__(self, store: LocalStore, write: str, beginning: str) -> None:
        self._store = store
        self._write = write
        self._beginning = beginning

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name != self._write:
            return value

        def call(key: str, *arguments: Any, **options: Any) -> Any:
            if key.startswith(self._beginning):
                raise Killed
            return value(key, *arguments, **options)

        return call


MOMENTS = {
    "extracting": ("put", "_raysight/chunks/"),
    "sealing": ("put_file", "features/"),
    "rewriting": ("replace_file", "features/"),
}


def verify(world: World, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    return main(["verify", str(world.dest), *SAMPLES]), capsys.readouterr().out


@pytest.mark.parametrize(
    ("moment", "problem"),
    [
        ("extracting", "PROBLEM      1 of 4 shards are not sealed (2 rows): features/shard-000003.parquet"),
        ("sealing", "PROBLEM      1 of 4 shards are not sealed (2 rows): features/shard-000003.parquet"),
        ("rewriting", "rows have still to leave shard 0"),
    ],
)
@pytest.mark.parametrize("retry", [False, True], ids=["a sync", "a retry of rejects"])
def test_a_job_killed_in_the_middle_is_said_and_the_named_command_settles_it(
    world: World, capsys: pytest.CaptureFixture[str], moment: str, problem: str, retry: bool
) -> None:
    if retry:
        problem = problem.replace("(2 rows)", "(1 rows)")
    else:
        change(world)
    with pytest.raises(Killed):
        world.extract(dest=Dying(LocalStore(str(world.dest)), *MOMENTS[moment]), retry=retry)
    code, printed = verify(world, capsys)
    assert code == 1
    assert problem in printed
    assert printed.splitlines()[-1] == "FAILED"
    (said,) = (line for line in printed.splitlines() if line.startswith("UNSETTLED"))
    command = (
        f"retry-rejects '{world.dest}/'"
        if retry
        else f"extract '{world.sources[0]}/' '{world.dest}/', with the options"
    )
    assert f"to settle it: raysight {command}" in said
    world.extract(retry=retry)  # what that command does
    assert verify(world, capsys)[0] == 0
    manifest = load_manifest(LocalStore(str(world.dest)))
    assert manifest is not None
    assert len(manifest.generations) == 2, "what was broken off is finished, not begun once more"


def test_the_named_command_has_the_sources_of_the_listing_that_was_broken_off(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write(1, "other.png", b"1")
    with pytest.raises(Killed):
        world.extract((1,), dest=Dying(LocalStore(str(world.dest)), *MOMENTS["sealing"]))
    assert f"raysight extract '{world.sources[1]}/' '{world.dest}/', with" in verify(world, capsys)[1]


def test_what_dies_before_its_generation_is_committed_leaves_the_dataset_settled(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    change(world)
    with contextlib.suppress(FailingStore.DiedError):
        world.extract(dest=FailingStore(LocalStore(str(world.dest)), 1))
    code, printed = verify(world, capsys)
    assert (code, printed.splitlines()[-1][:2]) == (0, "ok")


def test_rejects_of_a_rewrite_that_was_broken_off_are_left_to_the_next_job(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (world.dest / "rejects").iterdir()
    path.with_name(f"{path.name[:13]}0123456789abcdef.parquet").write_bytes(path.read_bytes())
    code, printed = verify(world, capsys)
    assert code == 1
    assert "UNSETTLED" in printed
    world.extract()
    assert verify(world, capsys)[0] == 0


@pytest.mark.parametrize(
    ("pattern", "content"),
    [("features/shard-000000.parquet", b"damaged"), ("rejects/*.parquet", b"damaged"), ("rejects/*.parquet", None)],
    ids=["damaged features", "damaged rejects", "lost rejects"],
)
def test_damage_that_no_run_makes_good_names_no_command(
    world: World, capsys: pytest.CaptureFixture[str], pattern: str, content: bytes | None
) -> None:
    (path,) = world.dest.glob(pattern)
    path.unlink() if content is None else path.write_bytes(content)
    code, printed = verify(world, capsys)
    assert code == 1
    assert "UNSETTLED" not in printed
