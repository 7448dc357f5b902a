"""Servers to measure, by name: each is there for as long as a block runs."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.bench.stubs import EmptyExtractor, SliceExtractor
from pipeline.cluster import local_ray, this_machine
from pipeline.config import ImageLimits, ModelConfig, StorageConfig
from pipeline.errors import RaysightError
from pipeline.sections import ServeConfig
from serve import ingress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

    from pipeline.extractor import Extractor

HOST = "127.0.0.1"
_START_S = 300.0


def extractor(kind: str, model: dict[str, Any]) -> Extractor:
    """``empty``, ``slice`` or ``model``, as the endpoint would have it."""
    from serve.loading import load_served

    config = ModelConfig(**model)
    if kind == "empty":
        return EmptyExtractor(config, ImageLimits())
    if kind == "slice":
        return SliceExtractor(config, ImageLimits())
    return load_served(config, ImageLimits(), None, StorageConfig())


@contextmanager
def raysight(kind: str, model: dict[str, Any], settings: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """``raysight serve``, with these settings of ``[serve]``: the port and the path."""
    config = ServeConfig(host=HOST, port=free_port(), **settings)
    (node,) = this_machine()
    cpus = config.cpus_per_replica or max(1.0, node.cpus / config.max_replicas)
    gpus = 1.0 if node.gpus and kind == "model" else 0.0
    make = functools.partial(extractor, kind, model)
    os.environ.update(ingress.environment(config))  # of this measurement's process, and of the proxies it starts
    with local_ray(int(node.cpus)):
        from serve import deployment  # not before: it imports ray, which reads its environment then

        deployment.start(deployment.application(make, ImageLimits(), config, cpus, gpus), config)
        yield config.port, "/v1/features"
        deployment.stop()


def refuse_all() -> None:
    """Has the endpoint of ``raysight`` turn every request away from now on, as it does while it drains."""
    import ray.serve

    from serve import deployment

    deployment.drain(ray.serve.get_app_handle(deployment.NAME), grace_s=30.0)


@contextmanager
def ray_serve(application: str) -> Iterator[tuple[int, str]]:
    """An application of ``serve.bench.peers`` on Ray Serve as it comes."""
    from serve.bench import peers

    port = free_port()
    with local_ray(len(os.sched_getaffinity(0))):
        import ray.serve

        ray.serve.start(http_options={"host": HOST, "port": port})
        ray.serve.run(getattr(peers, application)())
        yield port, "/"
        ray.serve.shutdown()


@contextmanager
def uvicorn(app: str, path: str, **arguments: Any) -> Iterator[tuple[int, str]]:
    """uvicorn in a process of its own around what a function of this module or of the peers makes."""
    import json

    port = free_port()
    command = [sys.executable, "-m", "serve.bench.servers", app, str(port), json.dumps(arguments)]
    process = subprocess.Popen(command)
    try:
        _await(port, process)
        yield port, path
    finally:
        process.terminate()
        process.wait()


def own_app(kind: str, model: dict[str, Any]) -> FastAPI:
    """raysight's own app, as a replica holds it."""
    from serve.api import create_app
    from serve.engine import Engine

    engine = Engine(extractor(kind, model), ImageLimits(), ServeConfig(), len(os.sched_getaffinity(0)))
    engine.warm_up()
    return create_app(engine, None)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise RaysightError("uvicorn did not start") from None
            time.sleep(0.05)
        else:
            return


def _main(app: str, port: str, arguments: str) -> None:
    import json

    import uvicorn

    from serve.bench import peers

    makers: dict[str, Callable[..., FastAPI]] = {"own": own_app, "plain": peers.plain_app}
    uvicorn.run(makers[app](**json.loads(arguments)), host=HOST, port=int(port), log_level="warning")


if __name__ == "__main__":
    _main(*sys.argv[1:])
