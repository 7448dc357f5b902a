"""What is done and what is not, known from object names alone: resume lists, it does not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.manifest import Manifest
    from pipeline.storage import Store

    Pending = Sequence[tuple[int, NDArray[np.intp]]]
    """Shards with chunks to do, and the numbers of those chunks."""


@dataclass(slots=True)
class ShardProgress:
    """Which chunks of an unsealed shard are committed: a bit for each, so 10⁵ chunks cost 10⁵ bytes."""

    committed: np.ndarray[tuple[int], np.dtype[np.bool_]]

    @property
    def whole(self) -> bool:
        """Whether the shard can be sealed."""
        return bool(self.committed.all())


class Plan:
    """Progress of a dataset towards its manifest. Belongs to the driver; one thread uses it."""

    def __init__(self, manifest: Manifest, sealed: set[int], committed: Iterator[tuple[int, int]]) -> None:
        self._manifest = manifest
        self.sealed = sealed
        self.open: dict[int, ShardProgress] = {
            number: ShardProgress(np.zeros(len(shard.chunks), dtype=bool))
            for number, shard in enumerate(manifest.shards)
            if number not in sealed
        }
        for shard, chunk in committed:
            self.commit(shard, chunk)

    @classmethod
    def survey(cls, dest: Store, manifest: Manifest) -> Plan:
        """The plan as the names in ``dest`` show it."""
        shards = (schema.parse_shard(item.key) for item in dest.list_objects(schema.FEATURES_FOLDER))
        chunks = (schema.parse_chunk(item.key) for item in dest.list_objects(schema.CHUNKS_FOLDER))
        return cls(manifest, {shard for shard in shards if shard is not None}, (pair for pair in chunks if pair))

    def commit(self, shard: int, chunk: int) -> bool:
        """Notes a committed chunk. True when it is the one that makes its shard whole."""
        progress = self.open.get(shard)
        if progress is None or chunk >= len(progress.committed) or progress.committed[chunk]:
            return False  # a late chunk of a sealed shard, or of nothing
        progress.committed[chunk] = True
        return progress.whole

    def seal(self, shard: int) -> None:
        """Notes a sealed shard."""
        self.open.pop(shard, None)
        self.sealed.add(shard)

    def pending(self) -> Pending:
        """Shards with chunks to do, and those chunks."""
        missing = ((shard, np.flatnonzero(~progress.committed)) for shard, progress in sorted(self.open.items()))
        return [(shard, chunks) for shard, chunks in missing if len(chunks)]

    def sealable(self) -> list[int]:
        """Shards whose chunks are all there."""
        return [shard for shard, progress in sorted(self.open.items()) if progress.whole]

    @property
    def pending_chunks(self) -> int:
        """How many chunks are to do."""
        return sum(len(chunks) for _, chunks in self.pending())

    @property
    def rows_done(self) -> int:
        """Live images in sealed shards and committed chunks. Rows only leave once all shards before them are sealed."""
        shards = self._manifest.shards
        done = sum(shards[number].rows for number in self.sealed if number < len(shards))
        for number, progress in self.open.items():
            done += int(np.asarray(shards[number].chunks)[progress.committed].sum())
        return done - self._manifest.retired


def waves(pending: Pending, chunks: int) -> Iterator[Pending]:
    """Cuts what is pending into parts of at most ``chunks`` chunks, in order."""
    wave: list[tuple[int, NDArray[np.intp]]] = []
    room = chunks
    for shard, missing in pending:
        rest = missing
        while len(rest):
            wave.append((shard, rest[:room]))
            room -= len(wave[-1][1])
            rest = rest[len(wave[-1][1]) :]
            if room == 0:
                yield wave
                wave, room = [], chunks
    if wave:
        yield wave
