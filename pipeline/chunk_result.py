"""The figures of one committed chunk, on their way from a worker to the driver."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """Figures of one committed chunk; seconds are wall seconds but for those called CPU seconds.

    ``forward_seconds`` is the time the device was held (a stream of several holds its part of it);
    ``prepare_seconds`` and ``prepare_cpu_seconds`` are summed over all decode threads. ``started`` and ``ended`` are
    seconds on the clock of ``worker``, good for differences on the same one. ``requests`` are those of read and commit.
    ``batch_size`` is the images of one forward of this worker, ``batch_left`` what lack of memory left of it.
    """

    shard: int
    chunk: int
    rows: int
    rejects: dict[str, int]
    attempt: int
    bytes_read: int
    bytes_written: int
    read_seconds: float
    read_cpu_seconds: float
    prepare_seconds: float
    prepare_cpu_seconds: float
    forward_seconds: float
    forward_cpu_seconds: float
    commit_seconds: float
    commit_cpu_seconds: float
    chunk_seconds: float
    worker: str
    started: float
    ended: float
    requests: dict[str, int]
    batch_size: int
    batch_left: int

    def to_table(self) -> pa.Table:
        """One row."""
        counts = {"rejects": json.dumps(self.rejects), "requests": json.dumps(self.requests)}
        return pa.table({name: [value] for name, value in {**asdict(self), **counts}.items()})

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_table`."""
        counts = {name: json.loads(row[name]) for name in ("rejects", "requests")}
        return cls(**{**row, **counts})
