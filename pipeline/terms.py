"""What a run works under, who works for it, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pipeline.chunk_result import ChunkResult
    from pipeline.counting import CountingStore
    from pipeline.manifest import Manifest
    from pipeline.plan import Pending
    from pipeline.storage import Store


class Workers(Protocol):
    """Who extracts chunks, and finishes shards beside that."""

    def chunks(self, manifest: Manifest, pending: Pending, stop: threading.Event) -> Iterator[ChunkResult | None]:
        """The result of each chunk as it is committed; None now and then, so that the caller can look at the clock."""

    def submit(self, shard: int, task: Callable[[Store], None], cpus: float) -> None:
        """Begins to seal or rewrite a shard."""

    def done(self, *, wait: bool = False) -> Iterable[int]:
        """Shards whose task has ended since the last call; with ``wait``, of all that were submitted."""

    def free(self) -> str:
        """What is idle, for a person."""

    @property
    def requests(self) -> Mapping[str, int]:
        """To the stores, by the tasks of shards."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        rows: images that this run turned into features.
        rejects: images that this run rejected.
        skipped: images that were done before.
        total_rejects: rejected rows of the whole dataset.
        total: live rows of the manifest.
        images_per_second: of this run, once warm.
        complete: every chunk is sealed, and every row that should leave has left.
    """

    rows: int
    rejects: int
    skipped: int
    total_rejects: int
    total: int
    images_per_second: float
    complete: bool

    @property
    def line(self) -> str:
        """The last line of ``raysight extract``; scripts read it."""
        return (
            f"rows={self.rows} rejects={self.rejects} skipped={self.skipped}"
            f" images_per_second={self.images_per_second:.2f}"
        )


@dataclass(slots=True)
class Terms:
    """What a run works under.

    Attributes:
        max_passes: how often it goes over missing chunks.
        grace_s: seconds that chunks in flight have to commit after a stop.
        stop: set from outside.
        counted: stores of this process, whose requests belong into the figures.
        listed: requests of the listing.
    """

    max_passes: int
    grace_s: float
    stop: threading.Event
    counted: Sequence[CountingStore] = ()
    listed: Mapping[str, int] = field(default_factory=dict)
