"""What the manifests start, started: on a Ray of this machine, with a bucket on loopback.

`ray start` stands for KubeRay's pods, `ray job submit` for its submitter, and `serve deploy` for how it hands over
serveConfigV2. The entrypoint is that of the RayJob, letter by letter; so are source and destination. The settings are
those of the cpu overlay, with a small model and one CPU in place of what this machine does not have.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jobs
import numpy as np
import pytest
import yaml
from dashboards import DASHBOARDS, documented, load, unknown
from manifests import one, render, settings_file, toml_path
from prometheus_client.parser import text_string_to_metric_families
from s3_server import Bucket, S3Server
from test_job_s3 import download

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
KEY = "a key of the tests"
IMAGES = 12
HERE = {
    # The model's weights are not on this machine, nor is a worker's size.
    "RAYSIGHT_MODEL_NAME": "test_vit",
    "RAYSIGHT_MODEL_WEIGHTS": "random:0",
    "RAYSIGHT_MODEL_PRECISION": "fp32",
    "RAYSIGHT_JOB_CPUS_PER_ACTOR": "1",
    "RAYSIGHT_JOB_MAX_ACTORS": "1",
    "RAYSIGHT_SERVE_CPUS_PER_REPLICA": "1",
    "RAYSIGHT_SERVE_MAX_REPLICAS": "1",
}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


@dataclass(frozen=True)
class Running:
    """A Ray with a dashboard, and the bucket beside it."""

    dashboard: str
    scraper: Scraper
    environment: Mapping[str, str]
    images: Mapping[str, bytes]
    dest: Bucket
    said: list[str] = field(default_factory=list)
    """What the job printed."""

    def run(self, *command: str) -> str:
        """A command's output; it must succeed."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=240, cwd="/", check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, bytes]) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("cluster")
    given = settings_file("cpu")
    paths = jobs.write_corpus(folder / "corpus", photographs, IMAGES)
    keys = folder / "api-keys"
    keys.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
    with S3Server() as server:
        source, dest = (given[name].removeprefix("s3://").split("/", 1) for name in ("source", "dest"))
        client = server.client()
        for name in {source[0], dest[0]}:
            client.create_bucket(Bucket=name)
        images = {f"{given['source']}/{path.name}": path.read_bytes() for path in paths}
        Bucket(source[0], server, client).fill({uri.split("/", 3)[3]: data for uri, data in images.items()})
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "RAYSIGHT_"))},
            **server.environment(),
            **HERE,
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "RAYSIGHT_CONFIG": str(toml_path("cpu")),
            "RAYSIGHT_SERVE_API_KEYS": str(keys),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_metrics_report_interval_ms": "1000",  # ten seconds by default, and a figure holds for twice as long
        }
        port, dashboard, client_port, agent, metrics = free_ports(5)
        command = [
            str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
            f"--dashboard-port={dashboard}", f"--ray-client-server-port={client_port}",
            f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", "--num-cpus=3",
            "--object-store-memory=200000000",
        ]  # fmt: skip
        with (folder / "ray.log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd="/")
        url = f"http://127.0.0.1:{dashboard}"
        try:
            until(lambda: fetch(f"{url}/api/version", environment)[0] == 200, "the dashboard answers")
            with Scraper(f"http://127.0.0.1:{metrics}/metrics") as scraper:
                yield Running(url, scraper, environment, images, Bucket(dest[0], server, client))
        finally:
            jobs.kill_tree(process)
            process.wait()


class Scraper:
    """Asks a Prometheus port twice a second, as long as the block runs, and keeps what it ever saw."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kinds: dict[str, str] = {}
        """Name of a family, as it is exported → counter, gauge or histogram."""
        self.last: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        """(Name, labels) → the last value of each sample."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            for family in text_string_to_metric_families(fetch(self._url, {"RAY_AUTH_TOKEN": ""})[1].decode()):
                self.kinds[family.name] = family.type
                for sample in family.samples:
                    self.last[sample.name, frozenset(sample.labels.items())] = sample.value

    def kinds_of(self, prefix: str) -> dict[str, str]:
        """Name, with the ``_total`` of counters, → kind of the families whose name begins so."""
        return {
            name + ("_total" if kind == "counter" else ""): kind
            for name, kind in self.kinds.copy().items()
            if name.startswith(prefix)
        }

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        return sum(
            value
            for (found, own), value in self.last.copy().items()
            if found == name and labels.items() <= dict(own).items()
        )

    @property
    def names(self) -> set[str]:
        """Of all samples, as a query names them."""
        return {name for name, _ in self.last.copy()}


def fetch(url: str, environment: Mapping[str, str], data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body; 0 when nobody answers."""
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(url, data, {**token, **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def until(condition: Callable[[], bool], what: str, found: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}; but {found()}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def dataset(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the RayJob's entrypoint leaves in the bucket."""
    entrypoint = one(render("cpu"), "RayJob")["spec"]["entrypoint"]
    output = running.run("ray", "job", "submit", "--address", running.dashboard, "--", *shlex.split(entrypoint))
    assert f"rows={IMAGES} rejects=0 skipped=0" in output
    running.said.extend(output.splitlines())
    prefix = settings_file("cpu")["dest"].split("/", 3)[3] + "/"
    return download(running.dest, prefix, tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def rows(dataset: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Its features."""
    return jobs.features(dataset)


def test_the_entrypoint_turns_a_bucket_of_images_into_rows(
    running: Running, rows: dict[str, np.ndarray[Any, Any]]
) -> None:
    assert rows.keys() == running.images.keys()


def test_the_same_entrypoint_again_has_nothing_to_do(running: Running, rows: dict[str, np.ndarray[Any, Any]]) -> None:
    entrypoint = one(render("cpu"), "RayCronJob")["spec"]["jobTemplate"]["entrypoint"]
    output = running.run("ray", "job", "submit", "--address", running.dashboard, "--", *shlex.split(entrypoint))
    assert f"rows=0 rejects=0 skipped={len(rows)}" in output


def test_without_the_token_nobody_submits_a_job(running: Running) -> None:
    stranger = {**running.environment, "RAY_AUTH_TOKEN": "0" * 64}
    assert fetch(f"{running.dashboard}/api/jobs/", running.environment)[0] == 200
    assert fetch(f"{running.dashboard}/api/jobs/", stranger)[0] in (401, 403)


@pytest.fixture(scope="module")
def endpoint(running: Running, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of what the RayService's serveConfigV2 deploys, once it has answered with the features of an image."""
    config = yaml.safe_load(one(render("cpu"), "RayService")["spec"]["serveConfigV2"])
    (port,) = free_ports(1)
    config["http_options"].update(host="127.0.0.1", port=port)  # port 8000 of this machine may be somebody's
    path = tmp_path_factory.mktemp("serve") / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    running.run("serve", "deploy", str(path), "--address", running.dashboard)
    url = f"http://127.0.0.1:{port}"
    until(lambda: fetch(f"{url}/readyz", running.environment)[0] == 200, "the endpoint is ready")
    data = next(iter(running.images.values()))
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {KEY}"}
    assert fetch(f"{url}/v1/features", running.environment, data, **headers)[0] == 200
    return url


def test_the_serve_config_deploys_an_endpoint_that_answers_with_the_rows_of_the_job(
    running: Running, rows: dict[str, np.ndarray[Any, Any]], endpoint: str
) -> None:
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {KEY}"}
    for uri, data in list(running.images.items())[:4]:
        status, body = fetch(f"{endpoint}/v1/features", running.environment, data, **headers)
        assert status == 200, body
        vector = np.array(json.loads(body)["data"][0]["embedding"], dtype=np.float32)
        np.testing.assert_allclose(vector, rows[uri], rtol=0, atol=1e-5)
    nobody = fetch(f"{endpoint}/v1/features", running.environment, data, **{**headers, "Authorization": "Bearer no"})
    assert nobody[0] == 401


def test_rays_port_shows_what_the_document_lists_with_these_types_and_labels(
    running: Running, rows: dict[str, np.ndarray[Any, Any]], endpoint: str
) -> None:
    scraper, expected = running.scraper, documented()
    kinds = {name: kind for name, (kind, _, _) in expected.items()}
    until(lambda: scraper.kinds_of("ray_raysight_") == kinds, "all figures", lambda: scraper.kinds_of("ray_raysight_"))
    for name, found in scraper.last.copy():
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        if family in expected:
            assert expected[family][2] <= {label for label, _ in found}, name


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_each_query_of_the_dashboards_names_what_rays_port_shows(
    running: Running, rows: dict[str, np.ndarray[Any, Any]], endpoint: str, path: Path
) -> None:
    dashboard = load(path)
    until(
        lambda: not unknown(dashboard, running.scraper.names),
        "all series of the dashboard",
        lambda: unknown(dashboard, running.scraper.names),
    )


def test_the_figures_are_those_of_the_run_whose_name_the_log_lines_and_the_dataset_have(
    running: Running, rows: dict[str, np.ndarray[Any, Any]], dataset: Path
) -> None:
    (log,) = dataset.glob("_raysight/run-*.json")
    labels = {"run": log.stem.removeprefix("run-"), "dataset": settings_file("cpu")["dest"].rstrip("/")}
    lines = [json.loads(line) for line in running.said if line.startswith("{")]
    assert {line["message"] for line in lines} >= {f"complete: {IMAGES} rows in {labels['dataset']}/features/"}
    assert [line for line in lines if not labels.items() <= line.items()] == []
    images = f"{IMAGES} images"
    until(lambda: running.scraper.value("ray_raysight_job_images_total", outcome="ok", **labels) == IMAGES, images)
    assert running.scraper.value("ray_raysight_job_rows", **labels) == IMAGES
