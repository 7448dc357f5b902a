"""What the manifests start, started: on a Ray of this machine, with a bucket on loopback.

`ray start` stands for KubeRay's pods, with the variables that they set for Ray, `ray job submit` for its submitter, and
`serve deploy` for how it hands over serveConfigV2; `raysight` is deploy/raysight, as in the image. The entrypoint is
that of the RayJob, letter by letter; so are source and destination. The settings are those of the cpu overlay, with a
small model and one CPU in place of what this machine does not have.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import guide
import jobs
import numpy as np
import pytest
import yaml
from dashboards import DASHBOARDS, documented, filled_in, load, queries, unknown
from deployed import Scraper, fetch, free_ports, until
from manifests import ROOT, cluster, one, render, settings_file, toml_path
from prometheus import Prometheus, prometheus
from s3_server import Bucket, S3Server
from test_job_s3 import download

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


@dataclass(frozen=True)
class Running:
    """A Ray with a dashboard, and the bucket beside it."""

    dashboard: str
    scraper: Scraper
    prometheus: Prometheus | None
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


def rays_settings() -> dict[str, str]:
    """What the head's container sets of Ray."""
    container = cluster(one(render("cpu"), "RayJob"))["headGroupSpec"]["template"]["spec"]["containers"][0]
    return {item["name"]: item["value"] for item in container["env"] if item["name"].startswith("RAY_")}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, bytes]) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("cluster")
    given = settings_file("cpu")
    paths = jobs.write_corpus(folder / "corpus", photographs, IMAGES)
    make_keys = guide.command("printf %s")
    make_keys[-1] = make_keys[-1].split("&&")[0]  # the rest puts the file into the cluster
    subprocess.run(make_keys, env={**os.environ, "KEY": KEY}, cwd=folder, check=True)
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
            **rays_settings(),
            "PATH": os.pathsep.join([str(ROOT / "deploy"), str(BIN), os.environ["PATH"]]),
            "PYTHONPATH": f"{jobs.TESTS}:{ROOT}",
            "RAYSIGHT_CONFIG": str(toml_path("cpu")),
            "RAYSIGHT_SERVE_API_KEYS": str(folder / "api-keys"),
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
            port_of_metrics = f"127.0.0.1:{metrics}"
            with Scraper(f"http://{port_of_metrics}/metrics") as scraper, prometheus(folder, port_of_metrics) as asked:
                yield Running(url, scraper, asked, environment, images, Bucket(dest[0], server, client))
        finally:
            jobs.kill_tree(process)
            process.wait()


@pytest.fixture(scope="module")
def dataset(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the RayJob's entrypoint leaves in the bucket, submitted by the guide's command."""
    submit = guide.command("RAY_AUTH_MODE=token ray job submit", here=running.dashboard.removeprefix("http://"))
    assert submit[-1].split(" -- ")[1] == one(render("cpu"), "RayJob")["spec"]["entrypoint"]
    output = running.run(*submit)
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


def test_without_the_token_nobody_submits_a_job(running: Running) -> None:
    stranger = {**running.environment, "RAY_AUTH_TOKEN": "0" * 64}
    assert fetch(f"{running.dashboard}/api/jobs/", running.environment)[0] == 200
    assert fetch(f"{running.dashboard}/api/jobs/", stranger)[0] in (401, 403)


SLOW_IMAGES = 160  # forty chunks of 0.8 s: far more than it takes to tell the job to end


class Stoppable:
    """A job of many small chunks that takes its time, submitted again and again."""

    def __init__(self, running: Running, folder: Path, photographs: Mapping[str, bytes]) -> None:
        from ray.job_submission import JobSubmissionClient

        self.running = running
        self.corpus, self.dest = folder / "corpus", folder / "out"
        self.paths = jobs.write_corpus(self.corpus, photographs, SLOW_IMAGES)
        token = {"Authorization": f"Bearer {running.environment['RAY_AUTH_TOKEN']}"}
        self.client = JobSubmissionClient(running.dashboard, headers=token)

    def submit(self, name: str, *options: str, **settings: object) -> str:
        """What ``ray job submit`` prints."""
        words = [sys.executable, str(jobs.TESTS / "driver.py"), json.dumps({"job": {"chunk_rows": 4}, **settings})]
        words += ["extract", str(self.corpus), str(self.dest), "--batch-size", "4"]
        return self.running.run(
            "ray", "job", "submit", "--address", self.running.dashboard, "--submission-id", name, *options, "--", *words
        )

    def begin(self, name: str) -> int:
        """Submits it, and returns how many chunks there are once two more are committed."""
        before = len(jobs.chunks(self.dest))
        self.submit(name, "--no-wait", factory="slower")
        until(lambda: len(jobs.chunks(self.dest)) >= before + 2, "two more chunks", lambda: self.log(name))
        return len(jobs.chunks(self.dest))

    def log(self, name: str) -> str:
        text: str = self.client.get_job_logs(name)
        return text


@pytest.fixture(scope="module")
def stoppable(
    running: Running, tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, bytes]
) -> Stoppable:
    return Stoppable(running, tmp_path_factory.mktemp("stoppable"), photographs)


INTERRUPTED = "interrupted; what is committed stays. The same command goes on from there"


def test_before_its_pod_ends_a_head_ends_its_jobs_which_keep_what_is_committed_and_count_as_failed(
    stoppable: Stoppable,
) -> None:
    """The preStop hook of the RayJob's head, with this dashboard's port. KubeRay tries again what has failed."""
    head = cluster(one(render("cpu"), "RayJob"))["headGroupSpec"]["template"]["spec"]["containers"][0]
    _, script, _, seconds = head["lifecycle"]["preStop"]["exec"]["command"]
    there = stoppable.begin("evicted")
    stoppable.running.run("python", str(ROOT / "deploy" / Path(script).name), stoppable.running.dashboard, seconds)
    info = stoppable.client.get_job_info("evicted")
    assert (info.status.value, info.driver_exit_code) == ("FAILED", 4)
    assert INTERRUPTED in stoppable.log("evicted")
    assert there <= len(jobs.chunks(stoppable.dest)) < SLOW_IMAGES // 4


def test_ray_job_stop_lets_what_is_in_flight_commit(stoppable: Stoppable) -> None:
    stop = guide.command("RAY_AUTH_MODE=token ray job stop", here=stoppable.running.dashboard.removeprefix("http://"))
    name = stop[-1].split()[-1]
    there = stoppable.begin(name)
    stoppable.running.run(*stop)
    assert INTERRUPTED in stoppable.log(name)
    assert there <= len(jobs.chunks(stoppable.dest)) < SLOW_IMAGES // 4


def test_a_job_that_was_ended_twice_goes_on_when_it_is_submitted_again(stoppable: Stoppable) -> None:
    done = 4 * len(jobs.chunks(stoppable.dest))
    assert f"rows={SLOW_IMAGES - done} rejects=0 skipped={done}" in stoppable.submit("again")
    assert jobs.features(stoppable.dest).keys() == {str(path) for path in stoppable.paths}


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
    assert ask_endpoint(running, url) == 200
    return url


def ask_endpoint(running: Running, url: str) -> int:
    """The status of an answer for an image."""
    data = next(iter(running.images.values()))
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {KEY}"}
    return fetch(f"{url}/v1/features", running.environment, data, **headers)[0]


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


def test_the_command_of_the_guide_gets_the_features_of_an_image(
    running: Running, rows: dict[str, np.ndarray[Any, Any]], endpoint: str, tmp_path: Path
) -> None:
    uri, data = next(iter(running.images.items()))
    (tmp_path / "cat.jpg").write_bytes(data)
    ask = guide.command("curl --fail", there=endpoint)
    done = subprocess.run(ask, env={**os.environ, "KEY": KEY}, cwd=tmp_path, capture_output=True, check=True)
    np.testing.assert_allclose(json.loads(done.stdout)["data"][0]["embedding"], rows[uri], rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_each_query_of_the_dashboards_gets_numbers_from_a_prometheus_that_scrapes_rays_port(
    running: Running, stoppable: Stoppable, endpoint: str, path: Path
) -> None:
    """From the job that took its time, and from an endpoint that is asked meanwhile."""
    if running.prometheus is None:
        pytest.skip("no prometheus on this machine (Debian's package has it)")
    if not stoppable.dest.exists():  # this test is run by itself
        stoppable.submit("alone", factory="slower")
    open_queries = set(queries(load(path)))

    def answered() -> bool:
        assert running.prometheus is not None
        ask_endpoint(running, endpoint)
        for query in list(open_queries):
            if any(math.isfinite(value) for values in running.prometheus.values(filled_in(query)) for value in values):
                open_queries.remove(query)
        return not open_queries

    until(answered, "numbers for all queries", lambda: open_queries)


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
