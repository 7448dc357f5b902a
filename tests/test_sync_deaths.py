"""A sync and a retry of rejects that die at each of their writes in turn: nothing is lost meanwhile or doubled ever,
and the next job makes of it what an undisturbed one would have made."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest
from datasets import FailingStore
from world import Row, World

from pipeline import atomic
from pipeline.local import LocalStore

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: None)


class Story:
    """Nine objects in two shards, three of them rejected; then some change, and a job is to follow."""

    def __init__(self, folder: Path, job: str) -> None:
        self.world = World(folder)
        self.job = job
        for number in range(9):
            self.world.write(0, f"{number}.png", b"%d" % number)
        self.world.write(1, "other.png", b"70")
        cursed = [str(self.world.sources[0] / f"{number}.png") for number in (1, 4, 5)]
        self.world.decoder.cursed.update(cursed)
        self.world.extract((0, 1))
        before = self.world.rows()
        if job == "retry":
            self.world.decoder.cursed.difference_update(cursed[:2])
            self.world.write(0, "4.png", b"14")  # the row is to name the version that its features are of
        else:
            self.world.write(0, "0.png", b"10")  # features that change
            self.world.write(0, "4.png", b"14")  # a reject that changes, and stays one
            self.world.write(0, "new.png", b"20")
            for name in ("5.png", "6.png"):
                (self.world.sources[0] / name).unlink()
        self.expected = {
            uri: Row(etag, self.world.decoder.outcome(uri, content))
            for uri, (etag, content) in (self.world.objects(0) | self.world.objects(1)).items()
        }
        self.stays = set(before)
        if job == "sync with --prune":
            self.stays &= set(self.expected)
        else:
            self.expected = before | self.expected

    def run(self, dest: object = None) -> None:
        self.world.extract(prune=self.job == "sync with --prune", retry=self.job == "retry", dest=dest)


@pytest.mark.parametrize("torn", [False, True], ids=["lost", "carried out, but not answered"])
@pytest.mark.parametrize("job", ["sync", "sync with --prune", "retry"])
def test_a_death_at_any_write_loses_and_doubles_nothing_and_is_made_good(tmp_path: Path, job: str, torn: bool) -> None:
    for writes in count():
        story = Story(tmp_path / str(writes), job)
        world = story.world
        try:
            story.run(FailingStore(LocalStore(str(world.dest)), writes, torn=torn))
        except FailingStore.DiedError:
            died = True
        else:
            died = False  # past its last write
        where = f"died at write {writes}"
        versions = world.versions()
        assert len(versions) == len(set(versions)), where
        assert story.stays <= world.uris(), where
        if died:
            story.run()
        assert world.rows() == story.expected, where
        assert world.problems() == [], where
        assert not list(world.dest.glob("_raysight/chunks/**/*.parquet")), where
        if not died:
            assert writes > 12, "the job wrote less than it must"
            return
