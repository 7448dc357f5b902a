"""The way out where Serve has proxies on several nodes: whoever is in by any of them is answered, and nobody else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
import ray
from serve_cluster import KEY, NAME, endpoint, until
from serving import picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serve_cluster import Endpoint

pytestmark = [
    pytest.mark.ray,
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

REQUESTS = 12
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "image/jpeg"}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Endpoint]:
    """Two replicas and three proxies, each on a node of its own but for the head, which has a proxy alone."""
    file = tmp_path / "raysight.toml"
    file.write_text("[model]\nname = 'test_vit'\nweights = 'random:0'\n")
    with endpoint(tmp_path, proxies="EveryNode") as running:
        running.deploy(file, min_replicas=2, max_replicas=2)
        running.wait(replicas=2)
        until(lambda: len(proxies()) == 3, "a proxy on each node")
        ray.init(address=running.cluster.address, log_to_driver=False)
        try:
            yield running
        finally:
            ray.shutdown()


def proxies() -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["name"]) if each.info["name"].startswith("ray::ProxyActor")]


class Held:
    """Requests that are in and whose last byte is still to come, each over a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._last = threading.Event()

    def send(self) -> httpx.Response:
        with httpx.Client(base_url=self._url, headers=HEADERS, timeout=120, trust_env=False) as client:
            return client.post("/v1/features", content=self._body())

    def _body(self) -> Iterator[bytes]:
        image = picture()
        yield image[:-1]
        assert self._last.wait(120)
        yield image[-1:]

    def finish(self) -> None:
        self._last.set()


def in_flight(url: str) -> int:
    """Requests that are in, of both replicas: each answers for itself, and Serve picks one."""
    seen = set()
    for _ in range(24):
        with httpx.Client(base_url=url, headers=HEADERS, trust_env=False) as client:
            text = client.get("/metrics").text
        seen.add(next(line for line in text.splitlines() if line.startswith("raysight_serve_requests_in_flight ")))
    counts = [int(float(line.split()[1])) for line in seen]
    return sum(counts) if len(counts) > 1 else 2 * sum(counts)


def test_requests_by_every_proxy_end_well_and_new_ones_are_refused_by_every_proxy(running: Endpoint) -> None:
    from ray.serve import get_app_handle

    from serve.deployment import drain

    port = int(running.url.rpartition(":")[2])
    held = Held(running.url)
    handle = get_app_handle(NAME)
    with ThreadPoolExecutor(REQUESTS) as pool:
        requests = [pool.submit(held.send) for _ in range(REQUESTS)]
        try:
            until(lambda: [in_flight(running.url) for _ in range(2)] == [REQUESTS] * 2, "all requests are in")
            ways = [sum(link.laddr.port == port for link in proxy.net_connections()) for proxy in proxies()]
            assert sum(way > 1 for way in ways) >= 2  # each listens, and two have requests besides
            assert drain(handle, grace_s=0) == REQUESTS
            for _ in range(REQUESTS):
                refused = httpx.post(f"{running.url}/v1/features", content=picture(), headers=HEADERS, trust_env=False)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
                assert httpx.get(f"{running.url}/readyz", trust_env=False).status_code == 503
        finally:
            held.finish()
        assert [request.result(120).status_code for request in requests] == [200] * REQUESTS
    assert drain(handle, grace_s=60) == 0
