"""``raysight serve`` as a process on a real Ray Serve: the numbers of a job, clients that people use, the page, faults,
overload, and the way out.

One server for the whole file; the last test ends it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import duckdb
import httpx
import jobs
import numpy as np
import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from browser import CHROMIUM, DRIVER, MISSING, start_browser
from PIL import Image
from serving import JPEG, data_uri, picture
from test_page import canvas
from timm import create_model
from timm.data import create_transform, resolve_model_data_config

from pipeline.schema import metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
MODEL = "test_vit"
NAMES = ("rocket.jpg", "coins.png", "china.jpg")
MAX_QUEUE = 64
OVERLOAD_S = 30
GROWTH, MARGIN = 256 << 20, 64 << 20
"""Bytes that a process may grow under overload, and its last third over its first: seen were 160 MiB and 22."""

START_S = 240

Rows = dict[str, Any]
"""Arrays by the name of their column, a row for each of ``NAMES``: numbers as such, fingerprints by output."""


class Server:
    """The process, and where it listens."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def weights(make_checkpoint: Callable[..., Path]) -> str:
    return str(make_checkpoint(MODEL))


@pytest.fixture(scope="module")
def folder(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the settings that the job and the endpoint share."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "raysight.toml").write_text(
        f"[model]\nname = '{MODEL}'\nweights = '{weights}'\nimplementation = 'reference'\nprecision = 'fp32'\n"
        f"features = ['embedding', 'patches', 'classes']\n[serve]\nmax_queue = {MAX_QUEUE}\n"
    )
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path, photographs: Mapping[str, bytes]) -> Rows:
    """What a job writes of ``NAMES``, as DuckDB reads it."""
    (folder / "photographs").mkdir()
    for name in NAMES:
        (folder / "photographs" / name).write_bytes(photographs[name])
    options = ("--config", folder / "raysight.toml")
    code, output = jobs.run("extract", folder / "photographs", folder / "dataset", *options)
    assert code == 0, output
    table = duckdb.sql(f"from '{folder}/dataset/features/*.parquet'").to_arrow_table()
    found = {row["uri"].rpartition("/")[2]: row for row in table.to_pylist()}
    assert found.keys() == set(NAMES)
    names = ("embedding", "patches", "class_index", "class_probability")
    return {name: np.array([found[file][name] for file in NAMES]) for name in names}


@pytest.fixture(scope="module")
def server(folder: Path, rows: Rows) -> Iterator[Server]:
    del rows  # the job comes first: it and the endpoint each want the machine for themselves
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lossy", "serve", "--config", "raysight.toml", "--port", str(port)],
            cwd=folder,
            env={
                **inherited,
                "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
                "LOSE_DEVICE": str(folder / "lost"),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        wait_for(lambda: "the page is at" in log.read_text(), process, log)
        yield Server(process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.poll() is None:
            jobs.kill_tree(process)
        process.wait()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], log: Path) -> None:
    end = time.monotonic() + START_S
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def reference(weights: str, photograph_paths: dict[str, Path]) -> Rows:
    """What timm makes of ``NAMES``."""
    overlay = {"file": weights, "hf_hub_id": None, "url": ""}
    model = create_model(MODEL, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(photograph_paths[name]).convert("RGB")) for name in NAMES])
        tokens = model.forward_features(pixels)
        percent, index = (model(pixels).softmax(dim=1) * 100).topk(5)
        return {
            "embedding": model.forward_head(tokens, pre_logits=True).numpy(),
            "patches": tokens[:, model.num_prefix_tokens :].numpy(),
            "class_index": index.numpy(),
            "class_probability": percent.numpy(),
        }


@pytest.fixture(scope="module")
def files(photographs: Mapping[str, bytes]) -> list[Any]:
    """``NAMES`` as a form."""
    return [("file", (name, photographs[name])) for name in NAMES]


def assert_rows(found: Mapping[str, Any], *expected: Rows) -> None:
    """To 1e-5; patches, which are kept in float16, to its last place."""
    for rows in expected:
        for name, values in found.items():
            precision = {"rtol": 1e-3, "atol": 1e-5} if name == "patches" else {"rtol": 1e-5, "atol": 1e-5}
            np.testing.assert_allclose(values, rows[name].reshape(np.shape(values)), err_msg=name, **precision)


def test_the_parquet_of_a_job_holds_what_timm_gives(rows: Rows, reference: Rows) -> None:
    assert_rows(rows, reference)


def test_json_gives_what_the_parquet_holds(server: Server, rows: Rows, reference: Rows, files: list[Any]) -> None:
    with server.http as http:
        data = http.post("/v1/features?outputs=embedding,patches,classes", files=files).json()["data"]
    patches = [np.frombuffer(base64.b64decode(item["patches"]["base64"]), "<f2") for item in data]
    found = {
        "embedding": [item["embedding"] for item in data],
        "patches": [tokens.reshape(item["patches"]["shape"]) for tokens, item in zip(patches, data, strict=True)],
        "class_index": [[each["index"] for each in item["classes"]] for item in data],
        "class_probability": [[each["probability"] for each in item["classes"]] for item in data],
    }
    assert_rows(found, rows, reference)


def test_classify_gives_what_the_parquet_holds(server: Server, rows: Rows, files: list[Any]) -> None:
    with server.http as http:
        data = http.post("/v1/classify", files=files).json()["data"]
    classes = [item["classes"] for item in data]
    index = [[each["index"] for each in best] for best in classes]
    assert_rows({"class_index": index}, rows)
    assert_rows({"class_probability": [[each["probability"] for each in best] for best in classes]}, rows)


def test_npy_and_arrow_give_what_the_parquet_holds(
    server: Server, rows: Rows, reference: Rows, files: list[Any]
) -> None:
    with server.http as http:
        for name in ("embedding", "patches"):
            npy = http.post(f"/v1/features?outputs={name}", files=files, headers={"accept": "application/x-npy"})
            assert_rows({name: np.load(io.BytesIO(npy.content))}, rows, reference)
        url, accept = "/v1/features?outputs=embedding,patches,classes", "application/vnd.apache.arrow.stream"
        arrow = http.post(url, files=files, headers={"accept": accept})
    table = pa.ipc.open_stream(arrow.content).read_all()
    assert table["uri"].to_pylist() == list(NAMES)
    assert_rows({name: np.array(table[name].to_pylist()) for name in rows}, rows, reference)


def test_answers_with_all_outputs_have_the_fingerprint_of_the_dataset(
    server: Server, folder: Path, rows: Rows, files: list[Any]
) -> None:
    del rows
    (path,) = (folder / "dataset" / "features").glob("*.parquet")
    written = metadata(pq.read_metadata(path))["fingerprint"]
    with server.http as http:
        answer = http.post("/v1/features?outputs=embedding,patches,classes", files=files)
        model = http.get("/v1/models").json()["data"][0]["fingerprint"]
    digest = answer.headers["x-raysight-fingerprint"]
    assert digest == answer.json()["fingerprint"] == model.pop("digest")
    assert model == written


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_the_official_openai_client_gets_the_same_vectors(
    server: Server, photographs: Mapping[str, bytes], rows: Rows, reference: Rows, encoding: str | None
) -> None:
    options: dict[str, Any] = {} if encoding is None else {"encoding_format": encoding}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        answer = client.embeddings.create(model=MODEL, input=[data_uri(photographs[name]) for name in NAMES], **options)
    found: Any = [item.embedding for item in answer.data]
    if encoding == "base64":
        found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
    assert_rows({"embedding": found}, rows, reference)


def test_the_openai_client_raises_its_own_errors(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="URLs are not fetched"):
            client.embeddings.create(model=MODEL, input="https://example.org/a.jpg")
        with pytest.raises(openai.UnprocessableEntityError, match="no image"):
            client.embeddings.create(model=MODEL, input=data_uri(b"text"))
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="other", input=data_uri(picture()))


def test_the_readmes_curl_lines_work(server: Server, tmp_path: Path, photographs: Mapping[str, bytes]) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    joined = [re.sub(r"\|\n|\\\n", lambda match: match[0][0].replace("\\", " "), block) for block in blocks]
    lines = [line for block in joined for line in block.splitlines() if "curl " in line]
    assert len(lines) >= 3
    for name in ("cat.jpg", "dog.jpg"):
        (tmp_path / name).write_bytes(photographs["rocket.jpg"])
    for line in lines:
        command = line.replace("http://localhost:8000", server.url).replace("vit_small_patch14_dinov2.lvd142m", MODEL)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command.replace("curl ", "curl --fail-with-body -sS --noproxy '*' ", 1)],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout!r}\n{done.stderr!r}"
        assert b"error" not in done.stdout


def test_limits_hold_behind_the_proxy_too(server: Server) -> None:
    with server.http as http:
        large = http.post("/v1/features", content=bytes(33 << 20), headers=JPEG)
        assert (large.status_code, large.json()["error"]["limit"]["name"]) == (413, "max_body_bytes")
        many = http.post("/v1/features", files=[("file", b"x")] * 65)
        assert (many.status_code, many.json()["error"]["limit"]["name"]) == (400, "max_images")
        assert http.get("/v1/models", headers={"host": "evil.example"}).status_code == 403


def test_head_and_wrong_methods_are_answered_behind_the_proxy_too(server: Server) -> None:
    with server.http as http:
        for path in ("/", "/healthz", "/docs"):
            assert (http.head(path).status_code, http.head(path).content) == (200, b"")
        wrong = http.get("/v1/features")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_the_proxy_refuses_what_is_too_large_by_itself(server: Server) -> None:
    """Else it would keep all of it in memory for a replica that is slow, or not there."""
    (replica,) = jobs.workers(server.process, "ray::ServeReplica")
    replica.suspend()
    try:
        with server.http as http:
            for content in (bytes(33 << 20), iter([bytes(32 << 20), b"x"])):
                answer = http.post("/v1/features", content=content, headers=JPEG)
                assert (answer.status_code, answer.json()["error"]["limit"]["name"]) == (413, "max_body_bytes")
    finally:
        replica.resume()


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)
def test_the_page_shows_an_image_that_is_dropped_and_asks_nothing_of_other_machines(
    server: Server, photograph_paths: dict[str, Path], tmp_path: Path
) -> None:
    with start_browser(tmp_path, watch=True) as browser:
        browser.open(f"{server.url}/")
        browser.give("drop", photograph_paths["rocket.jpg"])
        browser.wait_for_result("rocket.jpg")
        browser.screenshot(tmp_path / "page.png")
        assert len(np.unique(canvas(browser).reshape(-1, 4), axis=0)) > 20  # of 100 patches
        assert browser.element("photo").is_displayed()
        asked = browser.requests()
        assert f"{server.url}/v1/features?outputs=embedding,patches,classes" in [unquote(url) for url in asked]
        assert [url for url in asked if not url.startswith(f"{server.url}/")] == []
        assert browser.messages() == []


async def flood(url: str, seconds: float, memory: Callable[[], list[int]]) -> tuple[list[Any], list[list[int]]]:
    """Six times as many images as are let in, held out by clients that ask again at once; all answers, and what
    ``memory`` said every half second."""
    body = [("file", picture(400, 300, seed=seed)) for seed in range(8)]
    limits = httpx.Limits(max_connections=48)
    answers: list[Any] = []
    samples = []
    end = time.monotonic() + seconds

    async def ask(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            answer = await client.post("/v1/features", files=body)
            error = {} if answer.status_code == 200 else answer.json()["error"]
            answers.append((answer.status_code, error.get("code"), "retry-after" in answer.headers))

    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
        tasks = asyncio.gather(*(ask(client) for _ in range(6 * MAX_QUEUE // len(body))))
        while not tasks.done():
            samples.append(memory())
            await asyncio.sleep(0.5)
        await tasks
    return answers, samples


def test_overload_is_answered_with_200_or_429_and_memory_stays_bounded(server: Server) -> None:
    """Half a minute of it, with refusals in the endpoint's own words."""
    watched = [*jobs.workers(server.process, "ray::ServeReplica"), *jobs.workers(server.process, "ray::ProxyActor")]
    assert len(watched) == 2
    before = [process.memory_info().rss for process in watched]
    answers, samples = asyncio.run(
        flood(server.url, OVERLOAD_S, lambda: [process.memory_info().rss for process in watched])
    )
    assert {status for status, _, _ in answers} == {200, 429}
    assert {(code, retry) for status, code, retry in answers if status == 429} == {("queue_full", True)}
    third = len(samples) // 3
    for rss, *of_process in zip(before, *samples, strict=True):
        assert max(of_process[-third:]) <= max(of_process[:third]) + MARGIN
        assert max(of_process) <= rss + GROWTH
    with server.http as http:
        assert http.post("/v1/features", content=picture(), headers=JPEG).status_code == 200


def test_a_killed_replica_is_replaced_and_retries_succeed(server: Server) -> None:
    (replica,) = jobs.workers(server.process, "ray::ServeReplica")
    replica.kill()
    statuses = []

    def answered() -> bool:
        try:
            with server.http as http:
                statuses.append(http.post("/v1/features", content=picture(), headers=JPEG).status_code)
        except httpx.TransportError:
            return False
        return statuses[-1] == 200

    wait_for(answered, server.process, server.log)
    assert jobs.workers(server.process, "ray::ServeReplica") != [replica]


def test_a_replica_whose_device_is_lost_is_replaced_and_retries_succeed(server: Server, folder: Path) -> None:
    """By the waits of OpenAI's own client, which it makes for a 503 and its Retry-After."""
    (replica,) = jobs.workers(server.process, "ray::ServeReplica")
    (folder / "lost").touch()
    with server.http as http:
        refused = http.post("/v1/features", content=picture(), headers=JPEG)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "device_lost")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=START_S) as client:
        answer = client.embeddings.create(model=MODEL, input=data_uri(picture()))
    assert len(answer.data) == 1
    assert not replica.is_running()
    assert len(jobs.workers(server.process, "ray::ServeReplica")) == 1


def test_sigterm_answers_what_is_in_flight_and_exits_with_0(server: Server, photographs: Mapping[str, bytes]) -> None:
    files = [("file", photographs["retina.jpg"])] * MAX_QUEUE
    with server.http as http, server.http as probe, ThreadPoolExecutor() as pool:
        inflight = pool.submit(http.post, "/v1/features", files=files)
        wait_for(
            lambda: inflight.done() or "requests_in_flight 1.0" in probe.get("/metrics").text,
            server.process,
            server.log,
        )
        server.process.send_signal(signal.SIGTERM)
        answer = inflight.result(60)
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == MAX_QUEUE
    assert server.process.wait(60) == 0
    told = server.log.read_text().splitlines()
    assert told[-2:] == ["SIGTERM: finishing what is in flight (once more to stop at once)", "stopped"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/readyz", trust_env=False)
