"""A dataset follows its sources, whatever happens to them and to the jobs: a model checked step by step."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from datasets import FailingStore
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from world import Outcome, Row, World

from pipeline import atomic
from pipeline.errors import UsageError
from pipeline.local import LocalStore
from pipeline.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = st.sampled_from([f"{number}.png" for number in range(14)])
SOURCES = st.integers(0, 1)
LISTED = st.sampled_from([(0,), (1,), (0, 1), (1, 0)])
FOLDERS = st.sampled_from(["_raysight/manifest/", "_raysight/chunks/", "rejects/", "features/"])
CONTENTS = st.one_of(st.integers(0, 99).map(lambda number: b"%d" % number), st.just(b"corrupt"))


class Follows(RuleBasedStateMachine):
    """The rules are what happens; the oracle is ``settled``, with what may have come in by jobs that died since."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="raysight-world-"))
        self.world = World(self.folder)
        self.settled: dict[str, Row] = {}
        self.died = self.died_pruning = False

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # What happens to the sources.

    @rule(source=SOURCES, names=st.lists(NAMES, min_size=1, max_size=8, unique=True), content=CONTENTS)
    def add_or_change(self, source: int, names: list[str], content: bytes) -> None:
        for name in names:
            self.world.write(source, name, content)

    @rule(source=SOURCES, names=st.lists(NAMES, min_size=1, max_size=5, unique=True))
    def delete(self, source: int, names: list[str]) -> None:
        for name in names:
            (self.world.sources[source] / name).unlink(missing_ok=True)

    @rule(source=SOURCES, name=NAMES)
    def curse(self, source: int, name: str) -> None:
        """The same bytes cannot be decoded any more."""
        self.world.decoder.cursed.add(str(self.world.sources[source] / name))

    @precondition(lambda self: self.world.decoder.cursed)
    @rule()
    def lift_the_curses(self) -> None:
        self.world.decoder.cursed.clear()

    # What jobs do.

    @rule(sources=LISTED, prune=st.booleans())
    def extract(self, sources: tuple[int, ...], prune: bool) -> None:
        listed = {uri: item for source in sources for uri, item in self.world.objects(source).items()}
        empty = [source for source in sources if not self.world.objects(source) and self.holds(source)]
        if prune and not self.died and empty:
            with pytest.raises(UsageError, match="would drop every row"):
                self.world.extract(sources, prune=True)
            return
        try:
            self.world.extract(sources, prune=prune)
        except UsageError:
            assert prune
            return  # the died jobs had rows of a source that is empty now
        self.check_extracted(listed, sources if prune else ())

    @rule(sources=LISTED, limit=st.integers(1, 9))
    def extract_some(self, sources: tuple[int, ...], limit: int) -> None:
        listed = {uri: item for source in sources for uri, item in self.world.objects(source).items()}
        self.world.extract(sources, limit=limit)
        self.check_extracted(dict(list(listed.items())[:limit]), ())

    @precondition(lambda self: load_manifest(LocalStore(str(self.world.dest))))
    @rule()
    def retry(self) -> None:
        died, before = self.died, self.settled
        self.world.extract(retry=True)
        found = self.world.rows()
        for uri, row in found.items():
            assert row in self.possible(uri), uri
            if not died and (was := before[uri]).outcome[0] == "rejects":
                assert row == self.retried(uri, was)
        if not died:
            assert found.keys() == before.keys()
        self.note(found)

    @rule(
        sources=LISTED,
        prune=st.booleans(),
        retry=st.booleans(),
        moment=st.one_of(st.tuples(st.just(""), st.integers(0, 30)), st.tuples(FOLDERS, st.integers(0, 2))),
        torn=st.booleans(),
    )
    def die(self, sources: tuple[int, ...], prune: bool, retry: bool, moment: tuple[str, int], torn: bool) -> None:
        """At the n-th write of all, or of those to one folder: each kind of step is broken off often."""
        store = LocalStore(str(self.world.dest))
        if retry and load_manifest(store) is None:
            return
        self.died = True
        self.died_pruning |= prune and not retry
        below, writes = moment
        dying = FailingStore(store, writes, torn=torn, below=below)
        with contextlib.suppress(FailingStore.DiedError, UsageError):
            self.world.extract(sources, prune=prune, retry=retry, dest=dying)

    @rule(source=SOURCES, names=st.lists(NAMES, min_size=3, max_size=5, unique=True), writes=st.integers(0, 2))
    def die_as_a_generation_is_written(self, source: int, names: list[str], writes: int) -> None:
        self.add_or_change(source, names, b"7")
        self.die((source,), prune=False, retry=False, moment=("_raysight/manifest/", writes), torn=False)

    @rule(source=SOURCES, names=st.lists(NAMES, min_size=5, max_size=9, unique=True))
    def delete_and_prune(self, source: int, names: list[str]) -> None:
        self.delete(source, names)
        self.extract((source,), prune=True)

    @rule(sources=LISTED)
    def die_while_listing(self, sources: tuple[int, ...]) -> None:
        class KilledError(Exception):
            pass

        def kill() -> None:
            raise KilledError

        self.died = True
        with pytest.raises(KilledError):
            self.world.extract(sources, after_listing=kill)

    @invariant()
    def no_version_of_an_object_is_in_the_features_twice(self) -> None:
        found = self.world.versions()
        assert len(found) == len(set(found))

    @invariant()
    def no_row_goes_before_the_one_in_its_place_is_there(self) -> None:
        """Also of jobs that died in the middle, unless they pruned."""
        if not self.died_pruning:
            assert self.settled.keys() <= self.world.uris()

    # The oracle.

    def holds(self, source: int) -> bool:
        return any(uri.startswith(f"{self.world.sources[source]}/") for uri in self.settled)

    def possible(self, uri: str) -> set[Row]:
        """What was there when the dataset was settled last, and what jobs have made of the object since."""
        before = {self.settled[uri]} if uri in self.settled else set()
        return before | self.world.decoder.seen[uri]

    def outcome(self, uri: str, content: bytes) -> Outcome:
        return self.world.decoder.outcome(uri, content)

    def retried(self, uri: str, was: Row) -> Row:
        path = Path(uri)
        if not path.exists():
            return Row(was.etag, ("rejects", "NotFound"))
        (info,) = LocalStore(str(path.parent)).look_up([path.name])
        assert info is not None
        return Row(info.version, self.outcome(uri, path.read_bytes()))

    def check_extracted(self, listed: dict[str, tuple[str, bytes]], pruned: Sequence[int]) -> None:
        """The newest version of what was listed, and all else as it was; pruned sources hold nothing else."""
        found = self.world.rows()
        for uri, (etag, content) in listed.items():
            row, was = found[uri], self.settled.get(uri)
            assert row.etag == etag, uri
            if not self.died:
                assert row.outcome == (was.outcome if was and was.etag == etag else self.outcome(uri, content)), uri
            else:
                assert row in self.possible(uri), uri
        for uri in found.keys() - listed.keys():
            assert not any(uri.startswith(f"{self.world.sources[source]}/") for source in pruned), uri
            assert row_is_old(found[uri], self.settled.get(uri), self.possible(uri), self.died), uri
        lost = self.settled.keys() - found.keys()
        if not self.died_pruning:
            assert all(any(uri.startswith(f"{self.world.sources[s]}/") for s in pruned) for uri in lost), lost
        self.note(found)

    def note(self, found: dict[str, Row]) -> None:
        """Settled: verify agrees, nothing is left over, and what was found is what must stay."""
        assert self.world.problems() == []
        assert not list(self.world.dest.glob("_raysight/chunks/**/*.parquet"))
        self.settled = found
        self.world.decoder.seen.clear()
        self.died = self.died_pruning = False


def row_is_old(row: Row, was: Row | None, possible: set[Row], died: bool) -> bool:
    """A row that this listing says nothing about."""
    return row in possible if died else row == was


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here asks what survives a power cut, and syncing would take most of the time."""
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: None)


COMMON = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "derandomize": True,
    "print_blob": False,
    "database": None,
}


def test_a_dataset_follows_its_sources_through_any_sequence_of_events() -> None:
    run_state_machine_as_test(
        Follows, settings=settings(max_examples=12, stateful_step_count=25, phases=[Phase.generate], **COMMON)
    )


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)  # a quiet machine takes minutes
def test_a_dataset_follows_its_sources_through_thousands_of_events() -> None:
    run_state_machine_as_test(Follows, settings=settings(max_examples=150, stateful_step_count=50, **COMMON))
