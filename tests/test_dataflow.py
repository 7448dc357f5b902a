"""The Ray Data graph itself: its operators, its blocks, and what the coordinator knows."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import jobs
import numpy as np
import pytest

from pipeline.budget import make_budget
from pipeline.cluster import Node, local_ray
from pipeline.config import Config, ImageLimits, JobConfig, ModelConfig, StorageConfig
from pipeline.errors import RaysightError, StorageError, UnavailableError, UsageError
from pipeline.local import LocalStore
from pipeline.manifest import Manifest, ManifestShard, load_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.worker import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

MODEL = ModelConfig(name="test_vit", weights="random:0", precision="fp32")


@pytest.fixture(scope="module")
def ray_on_two_cpus() -> Iterator[None]:
    with local_ray(2):
        yield


@pytest.fixture
def spec(tmp_path: Path, photographs: Mapping[str, bytes]) -> JobSpec:
    """A job over 40 images in chunks of four, whose manifest is written."""
    from functools import partial

    from pipeline.cut import Cut
    from pipeline.extractor import load_extractor
    from pipeline.generation import Listing, write_generation
    from pipeline.source import list_rows
    from pipeline.storage import open_store
    from pipeline.worker import JobSpec

    jobs.write_corpus(tmp_path / "photos", photographs, 40)
    config = Config(
        (str(tmp_path / "photos"),), str(tmp_path / "out"), model=MODEL, job=JobConfig(max_actors=1, grace_s=20.0)
    )
    dest = open_store(config.dest, StorageConfig())
    write_generation(dest, None, Listing(config.sources), list_rows(config.sources), Cut(4, 1 << 20, 1000))
    factory = partial(load_extractor, MODEL, ImageLimits())
    budget = make_budget(config.job, [Node(2, 0, 8 << 30)], can_grow=False)
    extractor = factory()
    return JobSpec(config, budget, extractor.fingerprint, factory, extractor.preprocessor, "run")


def listed(spec: JobSpec) -> Manifest:
    manifest = load_manifest(LocalStore(spec.config.dest))
    assert manifest is not None
    return manifest


def test_reads_and_actors_do_not_fuse_and_every_chunk_is_a_block(ray_on_two_cpus: None, spec: JobSpec) -> None:
    import ray

    from pipeline.dataflow import ChunkSource, build_dataset
    from pipeline.worker import Coordinator

    coordinator = ray.remote(Coordinator).options(num_cpus=0).remote()
    source = ChunkSource(spec, listed(spec), [(0, np.arange(10))], coordinator)
    dataset = build_dataset(spec, source, coordinator).materialize()
    stats = dataset.stats()
    assert "Operator 1 ReadChunks" in stats
    assert "Operator 2 MapBatches(ExtractActor)" in stats
    assert "Operator 3" not in stats
    assert dataset.num_blocks() == 10
    assert sorted(row["chunk"] for row in dataset.take_all()) == list(range(10))


def test_results_come_back_one_for_each_chunk(ray_on_two_cpus: None, spec: JobSpec, tmp_path: Path) -> None:
    from pipeline.running import run_chunks

    pending = [(0, np.array([1, 3, 9]))]
    results = [item for item in run_chunks(spec, listed(spec), pending, threading.Event()) if item]
    assert sorted((item.shard, item.chunk, item.rows, item.attempt) for item in results) == [
        (0, 1, 4, 1),
        (0, 3, 4, 1),
        (0, 9, 4, 1),
    ]
    assert [path.name for path in jobs.chunks(tmp_path / "out")] == ["00001.parquet", "00003.parquet", "00009.parquet"]


def test_waves_one_after_another_leave_no_chunk_out(ray_on_two_cpus: None, spec: JobSpec) -> None:
    from dataclasses import replace

    from pipeline.running import run_chunks

    small = replace(spec, config=replace(spec.config, job=replace(spec.config.job, wave_chunks=2)))
    pending = [(0, np.array([0, 1, 2]))]
    results = [item for item in run_chunks(small, listed(spec), pending, threading.Event()) if item]
    assert [item.chunk for item in results[2:]] == [2]
    assert sorted(item.chunk for item in results) == [0, 1, 2]


def test_a_worker_with_another_extractor_ends_the_job_with_the_differences(
    ray_on_two_cpus: None, spec: JobSpec
) -> None:
    from dataclasses import replace

    from pipeline.running import run_chunks

    other = replace(spec, fingerprint=replace(spec.fingerprint, precision="bf16"))
    with pytest.raises(UsageError, match="precision: bf16 → fp32"):
        list(run_chunks(other, listed(spec), [(0, np.array([0]))], threading.Event()))


def test_read_tasks_hold_every_pending_chunk_once(spec: JobSpec) -> None:
    from pipeline.dataflow import ChunkSource

    pending = [(0, np.arange(5)), (1, np.arange(1000, 3000))]
    shards = (ManifestShard((), "", "/photos/", 1), ManifestShard((), "", "/more/", 2))
    tasks = ChunkSource(spec, Manifest(shards, ()), pending, None).get_read_tasks(1)
    assert sum(task.metadata.num_rows for task in tasks) == 2005
    found = [(task.read_fn.args[2], chunk) for task in tasks for chunk in task.read_fn.args[3]]
    assert found == [(shard, int(chunk)) for shard, chunks in pending for chunk in chunks]
    assert {(task.read_fn.args[1], task.read_fn.args[2]) for task in tasks} == {("/photos/", 0), ("/more/", 1)}


def test_the_coordinator_counts_attempts_until_a_chunk_is_committed() -> None:
    from pipeline.worker import Coordinator

    coordinator = Coordinator()
    assert [coordinator.begin(0, 1) for _ in range(3)] == [(1, False), (2, False), (3, False)]
    assert coordinator.begin(0, 2) == (1, False)
    coordinator.end(0, 1)
    assert coordinator.begin(0, 1) == (1, False)


def test_attempts_of_tasks_that_decode_count_until_one_ends_and_the_actors_go_on_from_there() -> None:
    from pipeline.worker import Coordinator

    coordinator = Coordinator()
    assert [coordinator.begin_decoding(0, 1) for _ in range(4)] == [1, 2, 3, 4]
    assert coordinator.begin(0, 1) == (5, False)
    assert coordinator.begin(0, 1) == (6, False)
    assert coordinator.begin_decoding(0, 2) == 1
    coordinator.end_decoding(0, 2)
    assert coordinator.begin_decoding(0, 2) == 1  # read anew, after a node was lost
    coordinator.end_decoding(0, 2)
    assert coordinator.begin(0, 2) == (1, False)


def test_a_task_reads_and_decodes_and_hands_on_what_killed_others(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from pipeline.chunkrow import images
    from pipeline.prepared import Prepared
    from pipeline.worker import Coordinator, decoded_chunks

    class Here:
        """A coordinator whose methods are called as those of an actor."""

        def __init__(self) -> None:
            self.coordinator = Coordinator()

        def __getattr__(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(remote=getattr(self.coordinator, name))

    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    here = Here()
    for _ in range(spec.config.job.poison_attempts):
        here.coordinator.begin_decoding(0, 3)  # and never ended
    source = listed(spec).shards[0].source
    healthy, suspect = decoded_chunks(spec.config, source, 0, [2, 3], spec.preprocessor, here)
    assert [type(item) for item in images(healthy)] == [Prepared] * 4
    assert [type(item) for item in images(suspect)] == [memoryview] * 4
    assert here.coordinator.begin(0, 2) == (1, False)
    assert here.coordinator.begin(0, 3)[0] > spec.config.job.poison_attempts


def test_a_stopped_coordinator_begins_nothing_and_is_drained_when_all_results_were_seen() -> None:
    from pipeline.worker import Coordinator

    coordinator = Coordinator()
    coordinator.begin(0, 1)
    coordinator.stop()
    assert coordinator.begin(0, 2) == (0, True)
    assert not coordinator.drained(0)
    coordinator.end(0, 1)
    assert not coordinator.drained(0)
    assert coordinator.drained(1)


def test_our_own_error_is_found_below_rays_wrappers() -> None:
    from ray.exceptions import RayTaskError

    from pipeline.rayerrors import explain

    wrapped = RayTaskError(
        "read", "Traceback …", UnavailableError("the store is down\nFailed to apply UDF …")
    ).as_instanceof_cause()
    found = explain(wrapped)
    assert type(found) is UnavailableError
    assert isinstance(found, StorageError)
    assert str(found) == "the store is down"


def test_a_foreign_error_is_named_with_its_last_line() -> None:
    from pipeline.rayerrors import explain

    error = RuntimeError("outer")
    error.__cause__ = OSError("first\nlast")
    found = explain(error)
    assert type(found) is RaysightError
    assert "OSError: last" in str(found)


@pytest.mark.usefixtures("ray_on_two_cpus")
def test_processes_that_wait_for_their_next_read_are_kept(tmp_path: Path) -> None:
    """Ray's own default is to end one after a second where there are more processes than CPUs."""
    import ray

    def read(folder: Path, all_of_them: int) -> int:
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < all_of_them:  # each in a process of its own, all at once
            time.sleep(0.05)
        return os.getpid()

    processes = ray.get([ray.remote(read).options(num_cpus=0).remote(tmp_path, 3) for _ in range(3)], timeout=120)
    assert len(set(processes)) == 3

    time.sleep(4)

    assert all(Path(f"/proc/{process}").exists() for process in processes)
