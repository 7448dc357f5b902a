"""The job on a Ray cluster that exists already: nodes that die, and nodes that come."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jobs
import psutil
import pytest

from pipeline.cluster import _announcement_dropped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


def test_a_drained_node_is_handed_no_more_chunks_finishes_those_it_has_and_then_may_be_killed(
    cluster: Cluster,
    token: dict[str, str],
    photographs: Mapping[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What happens to a spot node: SIGTERM, on which `ray start --block` drains the node, and SIGKILL."""
    jobs.write_corpus(tmp_path / "corpus", photographs, 480)
    dest, trace = tmp_path / "out", tmp_path / "trace"
    trace.mkdir()
    env = {**token, "TEST_TRACE": str(trace)}
    monkeypatch.setenv("TEST_TRACE", str(trace))
    cluster.add_node(node_ip_address=WORKER_ADDRESSES[1], **NODE)
    node = start_node(cluster, WORKER_ADDRESSES[0], env)
    try:
        jobs.until(lambda: living(cluster) == 3, node, "two workers")
        process = jobs.start(
            "extract", tmp_path / "corpus", dest, *jobs.MODEL, "--address", cluster.address,
            "--min-actors", "2", "--max-actors", "2", "--cpus-per-actor", "1", "--batch-size", "4",
            settings={"factory": "traced", "job": SMALL}, env=env,
        )  # fmt: skip
        jobs.until(lambda: len(forwards(trace)) == 2, process, "work on both nodes")
        (going,) = {str(child.pid) for child in psutil.Process(node.pid).children(recursive=True)} & set(
            forwards(trace)
        )
        (staying,) = forwards(trace).keys() - {going}
        node.send_signal(signal.SIGTERM)

        def idle() -> bool:
            """Whether one actor does many chunks while the other, which may have four in hand, does none."""
            before = forwards(trace)
            jobs.until(lambda: forwards(trace)[staying] >= before[staying] + 12, process, "twelve more chunks")
            return forwards(trace)[going] == before[going]

        jobs.until(idle, process, "an idle actor on the drained node")
        assert node.poll() is None
        jobs.kill_tree(node)
        code, output = jobs.finish(process)
    finally:
        jobs.kill_tree(node)
        node.wait()
    assert code == 0, output
    assert jobs.features(dest).keys() == {str(path) for path in (tmp_path / "corpus").rglob("*.jpg")}
    (log,) = dest.glob("_raysight/run-*.json")
    assert json.loads(log.read_text())["retries"] == 0


@pytest.mark.soak
def test_a_job_whose_driver_and_nodes_are_told_to_go_at_once_commits_what_is_in_flight_and_ends(
    cluster: Cluster, token: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    """What a suspended RayJob does to its cluster. Shards of two chunks: there is one to seal, on nodes that drain."""
    dest = tmp_path / "out"
    node = start_node(cluster, WORKER_ADDRESSES[0], token)
    try:
        jobs.until(lambda: living(cluster) == 2, node, "a worker")
        process = jobs.start(
            "extract", corpus, dest, *jobs.MODEL, "--address", cluster.address,
            "--max-actors", "1", "--cpus-per-actor", "1", "--batch-size", "4",
            settings={"factory": "slower", "job": {**SMALL, "shard_rows": 8}}, env=token,
        )  # fmt: skip
        jobs.until(lambda: jobs.chunks(dest), process, "a committed chunk")
        node.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        code, output = jobs.finish(process)
    finally:
        jobs.kill_tree(node)
        node.wait()
    assert code == 4, output
    (log,) = dest.glob("_raysight/run-*.json")
    assert json.loads(log.read_text())["outcome"] == "interrupted"


def start_node(cluster: Cluster, address: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """A worker as in a pod: `ray start --block`, which has a minute to drain after SIGTERM."""
    command = [
        str(Path(sys.executable).parent / "ray"), "start", f"--address={cluster.address}", "--block",
        f"--node-ip-address={address}", "--num-cpus=1", f"--memory={8 << 30}", f"--object-store-memory={200 << 20}",
        "--include-log-monitor=false", "--disable-usage-stats",
    ]  # fmt: skip
    environment = jobs.environment({**env, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "240"})
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, cwd="/"
    )


def living(cluster: Cluster) -> int:
    """Nodes that are in, the head among them."""
    return sum(node["Alive"] for node in cluster.global_state.node_table())


def forwards(trace: Path) -> dict[str, int]:
    """Process id → forwards, which are chunks here."""
    return {path.name: path.stat().st_size for path in trace.iterdir()}


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
