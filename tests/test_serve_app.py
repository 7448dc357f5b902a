"""``serve.app:build``, what Serve's own tools import; nothing is started here."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from pipeline.bench.stubs import SliceExtractor
from pipeline.config import ImageLimits, ModelConfig
from pipeline.errors import UsageError
from pipeline.sections import ServeConfig

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.extractor import Extractor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    path.write_text(hashlib.sha256(b"key").hexdigest() + "\n")
    return str(path)


def test_build_takes_a_file_and_keys_that_are_stronger(tmp_path: Path, keys: str) -> None:
    from ray.serve import Application

    from serve.app import build

    file = tmp_path / "raysight.toml"
    file.write_text(f"[serve]\napi_keys = '{keys}'\nmax_queue = 7\n")
    app = build({"config": str(file), "serve.gpus_per_replica": 0.5, "serve.cpus_per_replica": "3"})
    assert isinstance(app, Application)
    deployment = app._bound_deployment
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    assert deployment.ray_actor_options["num_cpus"] == 3.0
    assert deployment.max_queued_requests == 7


def test_build_insists_on_keys() -> None:
    from serve.app import build

    with pytest.raises(UsageError, match=r"needs serve\.api_keys"):
        build({})


@pytest.mark.parametrize(
    ("args", "problem"),
    [({"serve.max_queu": 1}, "is not a setting"), ({"serve.max_queue": 0}, "serve.max_queue"), ({"queue": 1}, "queue")],
)
def test_build_refuses_what_is_no_setting(args: dict[str, int], problem: str, keys: str) -> None:
    from serve.app import build

    with pytest.raises(UsageError, match=problem):
        build({"serve.api_keys": keys, **args})


def test_model_is_loaded_on_a_thread_without_helpers_of_openmp() -> None:
    from serve.deployment import Endpoint

    threads: list[int] = []

    def factory() -> Extractor:
        threads.append(torch.get_num_threads())
        return SliceExtractor(ModelConfig(), ImageLimits())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.set_num_threads, 2).result()
        pool.submit(Endpoint, factory, ImageLimits(), ServeConfig(), 2).result()

    assert threads == [1]
