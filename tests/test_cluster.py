"""The job on a Ray cluster that exists already: nodes that die, and nodes that come."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import jobs
import psutil
import pytest

from pipeline.cluster import _announcement_dropped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ray.cluster_utils import Cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

SMALL = {"chunk_rows": 4, "shard_rows": 40, "shard_bytes": 1 << 30}
NODE = {"num_cpus": 1, "object_store_memory": 200 << 20, "memory": 8 << 30}
WORKER_ADDRESSES = ("127.0.0.2", "127.0.0.3")
"""Not the head's, so that the driver, which joins the node of its own address, never sits on a worker."""


@pytest.fixture(scope="module")
def token() -> dict[str, str]:
    """Token authentication: what a driver needs to be let in (conftest.py makes the token)."""
    return {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}


@pytest.fixture
def cluster(token: dict[str, str]) -> Iterator[Cluster]:
    """A head without CPUs, as on Kubernetes; the tests add the workers."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 200 << 20, "include_dashboard": False},
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, bytes]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    jobs.write_corpus(folder, photographs, 120)
    return folder


def actors() -> list[psutil.Process]:
    """Actors of the job on the nodes of this process's cluster."""
    below = psutil.Process(os.getpid()).children(recursive=True)
    return [process for process in below if "ray::MapWorker(MapBatches(ExtractActor)" in " ".join(_cmdline(process))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def test_a_node_that_dies_in_the_middle_loses_nothing(
    cluster: Cluster, token: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(node_ip_address=address, **NODE) for address in WORKER_ADDRESSES]
    dest = tmp_path / "out"
    process = jobs.start(
        "extract", corpus, dest, *jobs.MODEL, "--address", cluster.address,
        "--min-actors", "2", "--max-actors", "2", "--cpus-per-actor", "1",
        settings={"factory": "slow", "job": SMALL}, env=token,
    )  # fmt: skip
    jobs.until(lambda: len(jobs.chunks(dest)) >= 3, process, "three committed chunks")
    cluster.remove_node(nodes[0], allow_graceful=False)
    code, output = jobs.finish(process)
    assert code == 0, output
    assert jobs.features(dest).keys() == {str(path) for path in corpus.rglob("*.jpg")}


def test_the_pool_grows_when_nodes_come(cluster: Cluster, token: dict[str, str], corpus: Path, tmp_path: Path) -> None:
    cluster.add_node(node_ip_address=WORKER_ADDRESSES[0], **NODE)
    dest = tmp_path / "out"
    process = jobs.start(
        "extract", corpus, dest, *jobs.MODEL, "--address", cluster.address,
        "--min-actors", "1", "--max-actors", "2", "--cpus-per-actor", "1",
        settings={"factory": "slower", "job": SMALL}, env=token,
    )  # fmt: skip
    jobs.until(lambda: jobs.chunks(dest), process, "a committed chunk")
    assert len(actors()) == 1
    cluster.add_node(node_ip_address=WORKER_ADDRESSES[1], **NODE)
    jobs.until(lambda: len(actors()) == 2, process, "a second actor")
    code, output = jobs.finish(process)
    assert code == 0, output
    assert len(jobs.features(dest)) == 120


def test_a_job_waits_for_the_first_node_of_a_cluster_that_grows(
    cluster: Cluster, token: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    process = jobs.start(
        "extract", corpus, dest, *jobs.MODEL, "--address", cluster.address, "--limit", "8",
        "--max-actors", "1", "--cpus-per-actor", "1", settings={"job": SMALL}, env=token,
    )  # fmt: skip
    jobs.until(lambda: (dest / "_raysight/manifest/committed.json").exists(), process, "a manifest")
    cluster.add_node(node_ip_address=WORKER_ADDRESSES[1], **NODE)
    code, output = jobs.finish(process)
    assert code == 0, output
    assert "waiting for the cluster to grow" in output


def test_a_cluster_that_cannot_hold_an_actor_is_refused(
    cluster: Cluster, token: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    cluster.add_node(node_ip_address=WORKER_ADDRESSES[1], **NODE)
    options = ("--address", cluster.address, "--gpus-per-actor", "1")
    code, output = jobs.run("extract", corpus, tmp_path / "out", *jobs.MODEL, *options, env=token)
    assert code == 2
    assert "no node can hold an actor of" in output
    assert not (tmp_path / "out").exists()


def test_an_address_where_nobody_answers_is_a_clear_error(corpus: Path, tmp_path: Path) -> None:
    options = ("--address", "127.0.0.1:1")
    code, output = jobs.run("extract", corpus, tmp_path / "out", *jobs.MODEL, *options)
    assert code == 1
    assert output == "raysight: --address 127.0.0.1:1: cannot reach this Ray cluster: [Errno 111] Connection refused\n"


@pytest.mark.parametrize("broken_off", [False, True])
def test_what_stands_on_stderr_while_ray_starts_is_passed_on_but_for_its_announcement(
    capfd: pytest.CaptureFixture[str], broken_off: bool
) -> None:
    with contextlib.suppress(ConnectionError), _announcement_dropped():
        os.write(2, b"[I 1] Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 3\n")
        os.write(2, b"something is wrong\n")
        if broken_off:
            raise ConnectionError
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "something is wrong\nafterwards\n"
