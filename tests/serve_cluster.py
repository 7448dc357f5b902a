"""The endpoint on a Ray of several nodes, as an operator has it, and clients that keep asking it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import yaml
from deployed import free_ports
from manifests import KUBERNETES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from ray.cluster_utils import Cluster

KEY = "a key of the tests"
NAME = "raysight"
WAIT_S = 240
_ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
_NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


class Endpoint:
    """A head that only passes requests on, and workers with a CPU each for the replicas."""

    def __init__(self, cluster: Cluster, port: int, agents: list[int], folder: Path, proxies: str) -> None:
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        self.cluster = cluster
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._workers: list[Any] = []
        self._agents = agents
        self._folder = folder
        self._proxies = proxies
        self._dashboard = f"http://{cluster.webui_url}"
        self._serve = ServeSubmissionClient(self._dashboard)
        (folder / "api-keys").write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")

    def add_worker(self) -> None:
        """A node with a CPU, at an address of its own; three in all."""
        number = len(self._workers)
        address, agent = _ADDRESSES[number], self._agents[number]
        self._workers.append(self.cluster.add_node(node_ip_address=address, dashboard_agent_listen_port=agent, **_NODE))

    def remove_worker(self) -> None:
        """SIGKILL for all of the first worker's processes."""
        self.cluster.remove_node(self._workers[0], allow_graceful=False)

    def deploy(self, file: Path, **settings: Any) -> None:
        """Hands over the serveConfigV2 of the manifests with these settings, and does not wait."""
        from ray.serve.schema import ServeDeploySchema

        config = ServeDeploySchema.model_validate(self._config(file, settings))
        self._serve.deploy_applications(config.model_dump(exclude_unset=True))

    def deploy_by_command(self, file: Path, **settings: Any) -> None:
        """The same by ``serve deploy``, which takes some seconds more."""
        path = self._folder / "serve.yaml"
        path.write_text(yaml.safe_dump(self._config(file, settings)))
        command = [str(Path(sys.executable).parent / "serve"), "deploy", str(path), "--address", self._dashboard]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _config(self, file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Proxies of several nodes share the port of this machine: each new connection is for one of them."""
        manifest = yaml.safe_load((KUBERNETES / "base" / "endpoint.yaml").read_text())
        config: dict[str, Any] = yaml.safe_load(manifest["spec"]["serveConfigV2"])
        config["proxy_location"] = self._proxies
        config["http_options"].update(host="127.0.0.1", port=self._port)
        (application,) = config["applications"]
        application["args"] = {
            "config": str(file),
            "serve.api_keys": str(self._folder / "api-keys"),
            **{f"serve.{name}": value for name, value in settings.items()},
        }
        return config

    def state(self) -> dict[str, Any]:
        """The application as Serve's dashboard describes it; empty before it is there."""
        applications: dict[str, Any] = self._serve.get_serve_details()["applications"]
        found: dict[str, Any] = applications.get(NAME, {})
        return found

    def replicas(self) -> list[dict[str, Any]]:
        """Of the deployment, whatever their state."""
        found: list[dict[str, Any]] = self.state().get("deployments", {}).get(NAME, {}).get("replicas", [])
        return found

    def wait(self, replicas: int) -> None:
        """Until the version deployed last runs with exactly so many replicas."""

        def whole() -> bool:
            state = self.state()
            assert state.get("status") != "DEPLOY_FAILED", state["message"]
            return (
                state.get("status") == "RUNNING"
                and [each["state"] for each in self.replicas()] == ["RUNNING"] * replicas
            )

        until(whole, f"{replicas} replicas")


@contextmanager
def endpoint(folder: Path, proxies: str = "HeadOnly") -> Iterator[Endpoint]:
    """A head without CPUs and two workers with one each, without an application yet. ``proxies``: where, for Serve."""
    from ray.cluster_utils import Cluster

    port, dashboard, head, *agents = free_ports(6)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **_NODE,
            "num_cpus": 0,
            "include_dashboard": True,
            "dashboard_port": dashboard,
            "dashboard_agent_listen_port": head,
        },
    )
    try:
        running = Endpoint(cluster, port, agents, folder, proxies)
        running.add_worker()
        running.add_worker()
        yield running
    finally:
        cluster.shutdown()


@dataclass(frozen=True)
class Answer:
    """What a client got: for which image, with what status (0 when the connection broke)."""

    image: int
    status: int
    detail: str
    digest: str = ""
    vector: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


class Load:
    """Clients that ask for one image after another, each over one connection that it keeps."""

    def __init__(self, url: str, images: Sequence[bytes], clients: int) -> None:
        self.answers: list[Answer] = []
        self._url = url
        self._images = images
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failures(self) -> list[tuple[int, str]]:
        """Status and body of what was no 200."""
        return [(answer.status, answer.detail) for answer in self.answers if answer.status != 200]

    def more(self, count: int) -> None:
        """Until so many further answers are in."""
        there = len(self.answers)
        until(lambda: len(self.answers) >= there + count, f"{count} further answers")

    def _ask(self, number: int) -> None:
        headers = {"authorization": f"Bearer {KEY}", "content-type": "image/jpeg", "accept": "application/json"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=60, trust_env=False) as client:
            while not self._stop.is_set():
                number = (number + 1) % len(self._images)
                self.answers.append(ask(client, number, self._images[number]))


def ask(client: httpx.Client, number: int, image: bytes) -> Answer:
    """One request, with whatever becomes of it."""
    try:
        answer = client.post("/v1/features", content=image)
    except httpx.TransportError as error:
        return Answer(number, 0, repr(error))
    if answer.status_code != 200:
        return Answer(number, answer.status_code, answer.text)
    vector = np.array(answer.json()["data"][0]["embedding"], np.float32)
    return Answer(number, 200, "", answer.headers["x-raysight-fingerprint"], vector)


def until(condition: Callable[[], Any], what: str) -> None:
    """Waits for a condition."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)
