from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.budget import Budget, make_budget
from pipeline.cluster import Node
from pipeline.config import MIB, JobConfig
from pipeline.errors import UsageError
from pipeline.memory import PROCESS

GIB = 1024 * MIB


def node(cpus: float, gpus: float = 0, gib: float = 64) -> Node:
    return Node(cpus, gpus, gib * GIB)


@dataclass(frozen=True)
class Case:
    """What is asked for, and what comes out: (min actors, max actors, CPUs and GPUs of each), and the notes."""

    name: str
    nodes: list[Node]
    options: dict[str, Any]
    expected: tuple[int, int, float, float]
    notes: list[str] = field(default_factory=list)
    can_grow: bool = False


CASES = [
    Case("a laptop of two CPUs is one actor", [node(2)], {}, (1, 1, 2, 0)),
    Case("one CPU is enough", [node(1)], {}, (1, 1, 1, 0)),
    Case("eight CPUs are two actors", [node(8)], {}, (1, 2, 4, 0)),
    Case("six CPUs are shared out without a rest", [node(6)], {}, (1, 2, 3, 0)),
    Case("five CPUs are one actor of all of them", [node(5)], {}, (1, 1, 5, 0)),
    Case("small nodes beside a large one have no actor", [node(8), node(2)], {}, (1, 2, 4, 0)),
    Case("nodes add up", [node(4), node(4), node(4)], {"min_actors": 2}, (2, 3, 4, 0)),
    Case("a GPU is an actor with the node's CPUs", [node(16, 1)], {}, (1, 1, 16, 1)),
    Case("each of eight GPUs has its share of the CPUs", [node(96, 8)], {}, (1, 8, 12, 1)),
    Case("the GPU node with the fewest CPUs for each sets the share", [node(32, 2), node(8, 1)], {}, (1, 3, 8, 1)),
    Case("a CPU node beside GPU nodes has no actor", [node(8, 1), node(64)], {}, (1, 1, 8, 1)),
    Case("two actors share a GPU", [node(8, 1)], {"gpus_per_actor": 0.5}, (1, 2, 4, 0.5)),
    Case("a share lies on one GPU", [node(16, 2)], {"gpus_per_actor": 0.4}, (1, 4, 4, 0.4)),
    Case("an actor of two GPUs", [node(16, 4)], {"gpus_per_actor": 2}, (1, 2, 8, 2)),
    Case("no GPU although there are some", [node(8, 2)], {"gpus_per_actor": 0}, (1, 2, 4, 0)),
    Case("memory sets the bound", [node(64, gib=6)], {"cpus_per_actor": 1}, (1, 3, 1, 0)),
    Case(
        "as many actors as asked for", [node(8)], {"cpus_per_actor": 1, "min_actors": 3, "max_actors": 4}, (3, 4, 1, 0)
    ),
    Case(
        "too many actors are scaled down, and it is said",
        [node(4)],
        {"cpus_per_actor": 2, "min_actors": 3, "max_actors": 5},
        (2, 2, 2, 0),
        ["--max-actors 5 scaled down to 2", "--min-actors 3 scaled down to 2"],
    ),
    Case(
        "too many CPUs are scaled down, and it is said",
        [node(4)],
        {"cpus_per_actor": 16},
        (1, 1, 4, 0),
        ["--cpus-per-actor 16 scaled down to 4"],
    ),
    Case(
        "a cluster that grows may get more actors than fit now",
        [node(4)],
        {"cpus_per_actor": 4, "min_actors": 1, "max_actors": 50},
        (1, 50, 4, 0),
        can_grow=True,
    ),
    Case(
        "a cluster that grows may have room for none yet",
        [],
        {"gpus_per_actor": 1, "cpus_per_actor": 8, "max_actors": 4},
        (1, 4, 8, 1),
        ["waiting for the cluster to grow"],
        can_grow=True,
    ),
]


def make(case: Case) -> Budget:
    return make_budget(JobConfig(**case.options), case.nodes, can_grow=case.can_grow)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_actors(case: Case) -> None:
    budget = make(case)
    assert (budget.min_actors, budget.max_actors, budget.cpus_per_actor, budget.gpus_per_actor) == case.expected
    assert len(budget.notes) == len(case.notes)
    for note, expected in zip(budget.notes, case.notes, strict=True):
        assert expected in note


REFUSED = [
    ([node(8)], {"gpus_per_actor": 1}, "no node can hold an actor of 1 CPUs, 1 GPUs"),
    ([node(8, 1)], {"gpus_per_actor": 2}, "no node can hold an actor"),
    ([node(8, 4)], {"gpus_per_actor": 1.5}, "whole GPUs"),
    ([node(8, gib=1)], {}, r"1\.7 GiB, reads and a seal included .1 node with 8 CPUs, 0 GPUs and 1\.0 GiB"),
    ([node(8)], {"cpus_per_actor": 0.1}, "--cpus-per-actor 0.1 is too little; 0.2 is the least"),
    ([node(8)], {"cpus_per_actor": 0}, "too little"),
    ([node(8)], {"min_actors": 4, "max_actors": 2}, "--min-actors 4 is more than --max-actors 2"),
    ([], {}, "0 nodes with 0 CPUs"),
]


@pytest.mark.parametrize(("nodes", "options", "message"), REFUSED)
def test_what_can_never_run_is_refused_with_a_reason(nodes: list[Node], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_budget(JobConfig(**options), nodes, can_grow=False)


def test_batches_and_chunks_follow_the_device_unless_they_are_given() -> None:
    on_cpu, on_gpu = (
        make_budget(JobConfig(), [node(4)], can_grow=False),
        make_budget(JobConfig(), [node(4, 1)], can_grow=False),
    )
    assert (on_cpu.batch_size, on_cpu.chunk_rows, on_gpu.batch_size, on_gpu.chunk_rows) == (2, 64, None, 1024)
    given = make_budget(JobConfig(batch_size=3, chunk_rows=7, decode_threads=5), [node(4, 1)], can_grow=False)
    assert (given.batch_size, given.chunk_rows, given.decode_threads) == (3, 7, 5)


def test_a_forward_has_a_core_to_itself_and_a_gpu_one_forward() -> None:
    cpu, gpu = (make_budget(JobConfig(), [node(4, gpus)], can_grow=False) for gpus in (0, 1))
    assert (cpu.forward_streams, cpu.forward_threads, cpu.forward_depth) == (4, 1, 1)
    assert (gpu.forward_streams, gpu.forward_threads, gpu.forward_depth) == (1, 4, 2)


def test_threads_follow_the_cpus_of_an_actor_and_are_never_none() -> None:
    assert make_budget(JobConfig(), [node(4)], can_grow=False).threads == 4
    shared = make_budget(JobConfig(cpus_per_actor=0.5), [node(1)], can_grow=False)
    assert (shared.threads, shared.decode_threads) == (1, 1)


def decoding(nodes: list[Node], **options: Any) -> Budget:
    return make_budget(JobConfig(decode="tasks", **options), nodes, can_grow=False)


def test_tasks_that_decode_have_a_core_each_and_leave_the_actor_its_own() -> None:
    gpu = decoding([node(16, 1)])
    assert (gpu.read_tasks_per_actor, gpu.cpus_per_read, gpu.ray_cpus, gpu.threads) == (15, 1.0, 1.0, 1)
    cpu = decoding([node(4)])
    assert (cpu.read_tasks_per_actor, cpu.cpus_per_read, cpu.ray_cpus, cpu.forward_streams) == (2, 1.0, 2.0, 2)
    least = decoding([node(1)])
    assert (least.read_tasks_per_actor, least.cpus_per_read, least.ray_cpus) == (1, 0.5, 0.5)


def test_tasks_decode_on_nodes_without_an_actor_as_well() -> None:
    nodes = [node(8, 1), node(16), node(16)]
    assert decoding(nodes).read_tasks == 7 + 32
    assert decoding(nodes, decode_tasks=20).read_tasks == 20
    assert make_budget(JobConfig(), nodes, can_grow=False).read_tasks == 2


def test_the_pixels_of_tasks_that_decode_count_as_memory() -> None:
    budget = decoding([node(2)], chunk_bytes=10 * MIB, chunk_pixel_bytes=100 * MIB)
    assert budget.memory_per_read == PROCESS + 210 * MIB
    with pytest.raises(UsageError, match="no node can hold an actor"):
        decoding([node(2, gib=1)], chunk_pixel_bytes=GIB)


def test_a_node_too_small_for_an_actors_reads_is_refused_not_scaled_down_to() -> None:
    with pytest.raises(UsageError, match="no node can hold an actor of 1 CPUs"):
        make_budget(JobConfig(cpus_per_actor=1.0, read_tasks_per_actor=5), [node(0.25)], can_grow=False)


NODES = st.lists(
    st.builds(
        Node,
        st.floats(0.25, 256) | st.integers(1, 256).map(float),
        st.integers(0, 8).map(float),
        st.floats(0.5 * GIB, 512 * GIB),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=400, deadline=None)
@given(
    nodes=NODES,
    cpus=st.none() | st.floats(0.2, 64),
    gpus=st.none() | st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 1.0, 2.0]),
    reads=st.integers(1, 6),
    least=st.integers(1, 20),
    most=st.none() | st.integers(20, 100),
    decode=st.sampled_from(["actor", "tasks"]),
)
def test_wherever_actors_fit_their_reads_have_cpus_and_memory_left(
    nodes: list[Node], cpus: float | None, gpus: float | None, reads: int, least: int, most: int | None, decode: Any
) -> None:
    """Packs each node as full of actors as Ray could, by what Ray is asked for; reads and seal must fit beside."""
    job = JobConfig(
        cpus_per_actor=cpus,
        gpus_per_actor=gpus,
        read_tasks_per_actor=reads,
        min_actors=least,
        max_actors=most,
        decode=decode,
    )
    try:
        budget = make_budget(job, nodes, can_grow=False)
    except UsageError:
        return
    assert 1 <= budget.min_actors <= budget.max_actors
    assert budget.ray_cpus > 0
    assert budget.read_tasks >= budget.max_actors * budget.read_tasks_per_actor
    reads = budget.read_tasks_per_actor
    beside = reads * budget.memory_per_read + budget.memory_per_seal
    memory = budget.memory_per_actor + beside
    room = 0
    for one in nodes:
        actors = min(int(one.cpus / budget.cpus_per_actor + 1e-9), int(one.memory / memory))
        if budget.gpus_per_actor >= 1:
            actors = min(actors, int(one.gpus / budget.gpus_per_actor))
        elif budget.gpus_per_actor > 0:
            actors = min(actors, int(one.gpus) * int(1 / budget.gpus_per_actor + 1e-9))
        room += actors
        assert one.cpus - actors * budget.ray_cpus >= actors * reads * budget.cpus_per_read - 1e-6
        assert one.memory - actors * budget.memory_per_actor >= actors * beside
    assert budget.max_actors <= room


WIDE = 64 * MIB


def test_memory_is_declared_for_the_features_of_two_chunks_in_an_actor_and_of_one_in_a_seal() -> None:
    narrow, wide = (make_budget(JobConfig(), [node(2)], can_grow=False, features=size) for size in (0, WIDE))
    assert wide.memory_per_actor - narrow.memory_per_actor >= 2 * 2 * WIDE
    assert wide.memory_per_seal - narrow.memory_per_seal >= 2 * WIDE
    assert wide.memory_per_read == narrow.memory_per_read


def test_memory_is_declared_for_a_larger_model_than_the_default_one() -> None:
    unknown, small, usual, large = (
        make_budget(JobConfig(), [node(2)], can_grow=False, parameters=number).memory_per_actor
        for number in (None, 5_000_000, 22_056_576, 304_368_640)
    )
    assert unknown == small == usual
    assert large + 1 * MIB >= 4_237 * MIB
    assert large - usual == 12 * (304_368_640 - 22_056_576)  # measured: docs/performance.md


def test_memory_is_declared_for_the_weights_that_each_thread_has_for_itself_once_compiled_for_a_cpu() -> None:
    """In fp32: one for each of two threads, and one while the model is taken over (docs/performance.md, OpenVINO)."""
    plain, compiled = (
        make_budget(JobConfig(), [node(2)], can_grow=False, parameters=50_000_000, compiled=compiled)
        for compiled in (False, True)
    )
    assert compiled.memory_per_actor - plain.memory_per_actor == 3 * 4 * 50_000_000
    on_gpu = make_budget(JobConfig(), [node(2, 1)], can_grow=False, parameters=50_000_000, compiled=True)
    assert on_gpu.memory_per_actor == plain.memory_per_actor


def test_a_read_is_declared_with_its_process_beside_two_chunks() -> None:
    small, usual = (make_budget(JobConfig(chunk_bytes=size), [node(2)], can_grow=False) for size in (1, 64 * MIB))
    assert small.memory_per_read > 131 * MIB  # measured
    assert usual.memory_per_read - small.memory_per_read == 2 * (64 * MIB - 1)


def test_wide_rows_make_fewer_actors_where_memory_is_short() -> None:
    narrow, wide = (make_budget(JobConfig(), [node(8, gib=4)], can_grow=False, features=size) for size in (0, WIDE))
    assert (narrow.max_actors, wide.max_actors) == (2, 1)


def test_the_memory_of_an_actor_that_is_given_is_not_changed() -> None:
    job = JobConfig(actor_memory=777 * MIB)
    assert make_budget(job, [node(2)], can_grow=False, features=WIDE).memory_per_actor == 777 * MIB
