"""``raysight serve`` as a process on a real Ray Serve: clients that people use, faults, overload, and the way out.

One server for the whole file; the last test ends it.
"""

from __future__ import annotations

import asyncio
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

import httpx
import jobs
import numpy as np
import openai
import pyarrow as pa
import pytest
import torch
from PIL import Image
from serving import JPEG, data_uri, picture
from timm import create_model
from timm.data import create_transform, resolve_model_data_config

from pipeline.config import ImageLimits, ModelConfig, StorageConfig
from pipeline.embed import embed
from pipeline.extractor import load_extractor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]
MODEL = "test_vit"
NAMES = ("rocket.jpg", "coins.png", "china.jpg")
MAX_QUEUE = 64
START_S = 120


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
def server(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "raysight.toml").write_text(
        f"[model]\nname = '{MODEL}'\nweights = '{weights}'\nimplementation = 'reference'\nprecision = 'fp32'\n"
        f"[serve]\nmax_queue = {MAX_QUEUE}\n"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve.cli", "serve", "--config", "raysight.toml", "--port", str(port)],
            cwd=folder,
            env={**inherited, "PYTHONPATH": str(ROOT)},
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
def reference(weights: str, photograph_paths: dict[str, Path]) -> NDArray[np.float32]:
    """(3, dim) float32: what timm makes of ``NAMES``."""
    overlay = {"file": weights, "hf_hub_id": None, "url": ""}
    model = create_model(MODEL, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(photograph_paths[name]).convert("RGB")) for name in NAMES])
        return model.forward_head(model.forward_features(pixels), pre_logits=True).numpy()


def test_http_gives_what_the_parquet_holds_and_what_timm_gives(
    server: Server, weights: str, photograph_paths: dict[str, Path], reference: NDArray[np.float32]
) -> None:
    model = ModelConfig(name=MODEL, weights=weights, implementation="reference", precision="fp32")
    extractor = load_extractor(model, ImageLimits())
    table = embed(extractor, [str(photograph_paths[name]) for name in NAMES], ImageLimits(), StorageConfig())
    rows = np.stack(table["embedding"].to_pylist())
    files = [("file", (name, photograph_paths[name].read_bytes())) for name in NAMES]
    with server.http as http:
        json = http.post("/v1/features", files=files)
        npy = http.post("/v1/features", files=files, headers={"accept": "application/x-npy"})
        arrow = http.post("/v1/features", files=files, headers={"accept": "application/vnd.apache.arrow.stream"})
    vectors = np.array([item["embedding"] for item in json.json()["data"]], np.float32)
    np.testing.assert_allclose(vectors, reference, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vectors, rows, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.load(io.BytesIO(npy.content)), rows, rtol=1e-5, atol=1e-5)
    streamed = pa.ipc.open_stream(arrow.content).read_all()
    np.testing.assert_allclose(np.stack(streamed["embedding"].to_pylist()), rows, rtol=1e-5, atol=1e-5)
    assert json.headers["x-raysight-fingerprint"] == json.json()["fingerprint"] == extractor.fingerprint.digest


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_the_official_openai_client_gets_the_same_vectors(
    server: Server, photographs: Mapping[str, bytes], reference: NDArray[np.float32], encoding: str | None
) -> None:
    options: dict[str, Any] = {} if encoding is None else {"encoding_format": encoding}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        answer = client.embeddings.create(model=MODEL, input=[data_uri(photographs[name]) for name in NAMES], **options)
    for item, vector in zip(answer.data, reference, strict=True):
        found = item.embedding
        if encoding == "base64":
            import base64

            found = np.frombuffer(base64.b64decode(found), "<f4")  # type: ignore[arg-type]
        np.testing.assert_allclose(found, vector, rtol=1e-5, atol=1e-5)


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


def test_overload_is_answered_with_200_or_429_and_some_of_each(server: Server) -> None:
    async def flood() -> list[int]:
        limits = httpx.Limits(max_connections=48)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits, trust_env=False) as client:
            files = [("file", picture(400, 300, seed=seed)) for seed in range(8)]
            answers = await asyncio.gather(*(client.post("/v1/features", files=files) for _ in range(96)))
        return [answer.status_code for answer in answers]

    statuses = asyncio.run(flood())
    assert set(statuses) <= {200, 429, 503}
    assert {200, 429} <= set(statuses)
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
    assert "stopped" in server.log.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/readyz", trust_env=False)
