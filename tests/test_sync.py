"""What a job says and does when its sources are listed again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from world import MEMORY, World

from pipeline.errors import UsageError
from pipeline.generation import Listing
from pipeline.sync import Sync

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three objects, extracted."""
    made = World(tmp_path).fill(3)
    made.extract()
    made.said.clear()
    return made


def test_pruning_with_a_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="would drop everything beyond the limit"):
        Sync(Listing(("/photos/",), limit=3), prune=True, memory=MEMORY)


@pytest.mark.parametrize(("prune", "fate"), [(False, "--prune drops their rows"), (True, "their rows are dropped")])
def test_what_a_listing_found_is_said(world: World, prune: bool, fate: str) -> None:
    world.write(0, "1.png", b"11")
    world.write(0, "new.png", b"4")
    (world.sources[0] / "2.png").unlink()
    world.extract(prune=prune)
    assert world.said[:4] == [
        f"listing {world.sources[0]}/",
        "3 images: 1 new, 1 changed",
        f"gone from the source: 1; {fate}",
        "to extract: 2 images, 0.0 MiB",
    ]
    assert (f"{world.sources[0]}/2.png" in world.uris()) is not prune


def test_what_is_gone_alone_begins_a_generation_only_when_it_is_pruned(world: World) -> None:
    (world.sources[0] / "2.png").unlink()
    for prune, begins in ((False, False), (True, True)):
        world.said.clear()
        world.extract(prune=prune)
        assert any(line.startswith("to extract") for line in world.said) is begins


def test_a_source_that_is_empty_all_of_a_sudden_is_not_pruned(world: World) -> None:
    for path in world.sources[0].iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="holds no image any more, and --prune would drop every row of it"):
        world.extract(prune=True)
    world.extract()
    assert len(world.uris()) == 3


def test_a_source_that_never_held_anything_is_no_reason_to_refuse_pruning(world: World) -> None:
    (world.sources[0] / "2.png").unlink()
    world.extract((0, 1), prune=True)
    assert len(world.uris()) == 2
