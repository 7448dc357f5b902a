"""Who gets which CPUs. What cannot run is scaled down with a message, or refused; it never hangs.

An actor pool that takes every CPU, or all memory, leaves none for the read tasks that feed it, and Ray then waits
without a word. So each actor hands the CPUs of its own reads back: Ray is asked for ``cpus_per_actor`` less what its
read tasks take. Their memory is counted beside the actor's. Wherever an actor fits, its reads fit as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.memory import actor_memory, seal_memory
from pipeline.readshare import READ_CPUS, count_read_tasks, share_of_reads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.cluster import Node
    from pipeline.config import JobConfig

_RAY_UNITS = 10_000  # to a CPU: the finest share that Ray knows

ALLOCATOR: Mapping[str, str] = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""The environment of an actor without a GPU: glibc keeps freed memory, in huge pages. As it comes, every layer of a
forward maps its activations anew and faults in each page, 5,000 to 50,000 an image: 6 to 13 % of the time, against some
200 MiB (docs/performance.md)."""

_CPU_ACTOR = 4
"""CPUs of an actor without a GPU, or nearly so that none is left over: a forward of two images scales that far."""

_EPSILON = 1e-9
_GPU_CHUNK_ROWS, _CPU_CHUNK_ROWS = 1024, 64
_CPU_BATCH = 2

_CONVERTING = 1
"""Copies of the weights that OpenVINO's frontend makes while it takes a model over; measured at the default model."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a job asks of Ray.

    Attributes:
        min_actors: from the start.
        max_actors: at most.
        cpus_per_actor: that the actor and its reads use; its threads follow from it.
        gpus_per_actor: GPUs of an actor.
        memory_per_actor: bytes.
        memory_per_read: bytes, of a read task.
        memory_per_seal: bytes, of a task that seals or rewrites a shard; there is room for one beside each actor.
        read_tasks: read tasks under way at most.
        read_tasks_per_actor: of them, for each actor.
        cpus_per_read: CPUs of a read task.
        decode_threads: in each actor, or the tasks that decode for each.
        batch_size: images of one forward; None where the actor finds out.
        chunk_rows: images of one chunk.
        notes: what was scaled down, for the user.
    """

    min_actors: int
    max_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    memory_per_actor: int
    memory_per_read: int
    memory_per_seal: int
    read_tasks: int
    read_tasks_per_actor: int
    cpus_per_read: float
    decode_threads: int
    batch_size: int | None
    chunk_rows: int
    notes: tuple[str, ...]

    @property
    def ray_cpus(self) -> float:
        """CPUs Ray is asked for, for one actor."""
        left = self.cpus_per_actor - self.read_tasks_per_actor * self.cpus_per_read
        return math.floor(left * _RAY_UNITS + 1e-6) / _RAY_UNITS

    @property
    def threads(self) -> int:
        """Threads that an actor computes with; reads that decode have cores of their own."""
        return max(1, int(self.cpus_per_actor if self.cpus_per_read == READ_CPUS else self.ray_cpus))

    @property
    def forward_streams(self) -> int:
        """Forwards at a time in an actor: one on a GPU, one for each core without."""
        return 1 if self.gpus_per_actor > 0 else self.threads

    @property
    def forward_depth(self) -> int:
        """Batches in hand for each of these: on a GPU one is copied while another is computed."""
        return 2 if self.gpus_per_actor > 0 else 1

    @property
    def forward_threads(self) -> int:
        """Threads of each of these."""
        return self.threads // self.forward_streams


def make_budget(
    job: JobConfig,
    nodes: Sequence[Node],
    *,
    can_grow: bool,
    features: int = 0,
    parameters: int | None = None,
    compiled: bool = False,
) -> Budget:
    """Fits a job to the nodes there are.

    Args:
        job: what was asked for.
        nodes: of the cluster as it is.
        can_grow: whether nodes may come later; then ``max_actors`` stays as asked for.
        features: feature bytes of the largest chunk, for which memory is declared.
        parameters: of the model, likewise; None where nobody knows.
        compiled: whether the model is; each thread of a CPU then has the weights for itself.

    Raises:
        UsageError: not one actor can run, or the options contradict each other.
    """
    if job.max_actors is not None and job.min_actors > job.max_actors:
        raise UsageError(f"--min-actors {job.min_actors} is more than --max-actors {job.max_actors}")
    gpus = _gpus(job, nodes)
    cpus, notes = _cpus(job, nodes, gpus, can_grow=can_grow)
    reads, cpus_per_read, read_memory = share_of_reads(job, cpus, gpus)
    copies = max(1, int(cpus)) + _CONVERTING if compiled and not gpus else 0
    per_actor, per_seal = job.actor_memory or actor_memory(features, parameters, copies), seal_memory(features)
    memory = per_actor + reads * read_memory + per_seal
    fits = sum(_actors_on(node, cpus, gpus, memory) for node in nodes)
    if fits == 0 and not (can_grow and job.max_actors):
        raise UsageError(
            f"no node can hold an actor of {cpus:g} CPUs, {gpus:g} GPUs and {memory / 2**30:.1f} GiB, reads and a seal"
            f" included ({_describe(nodes)}). Ask for less with --cpus-per-actor or --gpus-per-actor, or, on a cluster"
            " that grows, give --max-actors with them"
        )
    wanted = job.max_actors or fits
    maximum = wanted if can_grow else min(wanted, fits)
    minimum = max(1, min(job.min_actors, maximum, fits or 1))
    if maximum < wanted:
        notes.append(f"--max-actors {wanted} scaled down to {maximum}: no more fit ({_describe(nodes)})")
    if minimum < job.min_actors:
        notes.append(f"--min-actors {job.min_actors} scaled down to {minimum}: no more fit ({_describe(nodes)})")
    if fits == 0:
        notes.append("no node can hold an actor yet: waiting for the cluster to grow")
    on_gpu = gpus > 0
    tasks = count_read_tasks(job, nodes, maximum, cpus, reads, cpus_per_read)
    return Budget(
        min_actors=minimum,
        max_actors=maximum,
        cpus_per_actor=cpus,
        gpus_per_actor=gpus,
        memory_per_actor=per_actor,
        memory_per_read=read_memory,
        memory_per_seal=per_seal,
        read_tasks=tasks,
        read_tasks_per_actor=reads,
        cpus_per_read=cpus_per_read,
        decode_threads=math.ceil(tasks / maximum) if job.decode == "tasks" else job.decode_threads or max(1, int(cpus)),
        batch_size=job.batch_size or (None if on_gpu else _CPU_BATCH),
        chunk_rows=job.chunk_rows or (_GPU_CHUNK_ROWS if on_gpu else _CPU_CHUNK_ROWS),
        notes=tuple(notes),
    )


def _gpus(job: JobConfig, nodes: Sequence[Node]) -> float:
    if job.gpus_per_actor is not None:
        if job.gpus_per_actor > 1 and job.gpus_per_actor != int(job.gpus_per_actor):
            raise UsageError(f"--gpus-per-actor {job.gpus_per_actor:g}: above 1, Ray gives out whole GPUs alone")
        return job.gpus_per_actor
    return 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0


def _cpus(job: JobConfig, nodes: Sequence[Node], gpus: float, *, can_grow: bool) -> tuple[float, list[str]]:
    usable = [node for node in nodes if node.gpus >= gpus and node.cpus > 0]
    largest = max((node.cpus for node in usable), default=0.0)
    least = job.read_tasks_per_actor * READ_CPUS * 2
    if job.cpus_per_actor is not None:
        if job.cpus_per_actor < least:
            raise UsageError(f"--cpus-per-actor {job.cpus_per_actor:g} is too little; {least:g} is the least")
        if job.cpus_per_actor > largest >= least and not can_grow:
            return largest, [
                f"--cpus-per-actor {job.cpus_per_actor:g} scaled down to {largest:g}: the node has no more"
            ]
        return job.cpus_per_actor, []
    if gpus > 0:
        shares = [node.cpus / _actors_by_gpu(node, gpus) for node in usable]
        return max(least, min(shares, default=1.0)), []
    actors = max(1, math.floor(largest / _CPU_ACTOR + 0.5))
    return max(least, largest / actors or 1.0), []


def _actors_on(node: Node, cpus: float, gpus: float, memory: int) -> int:
    rooms = [math.floor(node.cpus / cpus + _EPSILON), math.floor(node.memory / memory)]
    if gpus > 0:
        rooms.append(_actors_by_gpu(node, gpus))
    return min(rooms)


def _actors_by_gpu(node: Node, gpus: float) -> int:
    if gpus < 1:
        return max(1, int(node.gpus)) * math.floor(min(1.0, node.gpus) / gpus + _EPSILON)  # a share lies on one GPU
    return math.floor(node.gpus / gpus)


def _describe(nodes: Sequence[Node]) -> str:
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    memory = sum(node.memory for node in nodes) / 2**30
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)} with {cpus:g} CPUs, {gpus:g} GPUs and {memory:.1f} GiB in all"
