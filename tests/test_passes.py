"""Chunks that a pass over the workers leaves out are gone over again, so many times and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import world as worlds
from world import Here, World

from pipeline.errors import RaysightError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.chunk_result import ChunkResult
    from pipeline.manifest import Manifest


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Eight objects: two shards of two chunks of two."""
    return World(tmp_path).fill(8)


def lose(monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    """From now on workers lose the first chunk of so many passes, without a word."""

    class Losing(Here):
        def chunks(
            self, manifest: Manifest, pending: Sequence[tuple[int, Any]], stop: threading.Event
        ) -> Iterator[ChunkResult | None]:
            nonlocal passes
            passes -= 1
            (shard, chunks), *rest = pending
            return super().chunks(manifest, [(shard, chunks[1:]), *rest] if passes >= 0 else pending, stop)

    monkeypatch.setattr(worlds, "Here", Losing)


def test_what_one_pass_has_lost_the_next_one_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch, passes=1)
    world.extract()
    assert "1 chunks are still missing; going over them again" in world.said
    assert len(world.rows()) == 8
    assert world.problems() == []


def test_what_the_last_pass_has_lost_is_an_error_and_the_next_run_does_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, passes=2)
    with pytest.raises(RaysightError, match="1 chunks are missing after 2 passes; run again"):
        world.extract()
    assert len(world.uris()) == 4  # the other shard is whole, and sealed
    world.extract()
    assert len(world.rows()) == 8
