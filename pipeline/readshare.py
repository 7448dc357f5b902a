"""What read tasks take of the cluster: next to nothing where they only fetch, a core each where they decode."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.memory import PROCESS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.cluster import Node
    from pipeline.config import JobConfig

READ_CPUS = 0.05
"""CPUs that Ray sets aside for a read task: it waits for the network most of the time."""

_CHUNKS_OF_A_READ = 2
"""Chunks that a read task has in memory: one as it arrives, and its copy on the way into the object store."""


def share_of_reads(job: JobConfig, cpus: float, gpus: float) -> tuple[int, float, int]:
    """Read tasks inside an actor's share, and CPUs and bytes of each. Those that decode leave the actor what it needs.

    On a GPU that is one CPU; a forward on CPUs needs half of them, as there is no use for such a job but to try it.
    """
    if job.decode != "tasks":
        return job.read_tasks_per_actor, READ_CPUS, PROCESS + _CHUNKS_OF_A_READ * job.chunk_bytes
    memory = PROCESS + job.chunk_bytes + _CHUNKS_OF_A_READ * job.chunk_pixel_bytes
    left = cpus - (1 if gpus > 0 else max(1, cpus // 2))
    return (math.floor(left), 1.0, memory) if left >= 1 else (1, cpus / 2, memory)


def count_read_tasks(
    job: JobConfig, nodes: Sequence[Node], actors: int, cpus: float, reads: int, cpus_per_read: float
) -> int:
    """Read tasks at a time: those inside the actors' shares, and, where they decode, as many as the rest can hold."""
    if job.decode != "tasks":
        return actors * reads
    rest = sum(node.cpus for node in nodes) - actors * cpus
    return job.decode_tasks or actors * reads + max(0, math.floor(rest / cpus_per_read))
