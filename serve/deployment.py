"""The Ray Serve deployment: a thin shell around the app. The only module of this package that knows ray."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import ray.exceptions
import ray.serve
import torch
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import DeploymentUnavailableError

from pipeline.budget import ALLOCATOR
from pipeline.raymetrics import RayRecorder
from serve.api import create_app
from serve.auth import load_keys
from serve.batcher import batch_size
from serve.engine import Engine
from serve.metrics import SERVE_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from pipeline.config import ImageLimits
    from pipeline.extractor import Extractor
    from pipeline.sections import ServeConfig

NAME = "raysight"

_log = logging.getLogger("raysight.serve")

_MARGIN = 32
"""Requests that Serve lets through beyond ``max_queue``, so that it is the replica that refuses, with our own body."""

_SECOND_NET_S = 5.0
"""Seconds after which Serve itself ends a request that the replica has not."""

_POLL_S = 0.2

_PATIENCE = {"GOMP_SPINCOUNT": "20000"}
"""For how many rounds, some 0.2 ms, threads that share a forward wait awake for one another. libgomp's own 3 ms are
ruinous where another program keeps a core: who waits then keeps the other from whom it waits for."""

_HEALTH_PERIOD_S = 2.0
"""Seconds between Serve's looks at a replica, by which it finds that one has ended; Serve's own are 10."""

_LAST_WORDS_S = 1.0
"""Seconds that a replica without a device has to hand its answers to the proxies, once no request is in."""

_DEVICE_LOST_EXIT = 70


class Endpoint:
    """One replica: the extractor, loaded once, behind the app."""

    def __init__(
        self, factory: Callable[[], Extractor], limits: ImageLimits, config: ServeConfig, threads: int
    ) -> None:
        # OpenMP keeps helpers for each thread that ever shared work, and once there are more than cores none waits
        # awake for another any more: the thread that loads the model must have none (docs/performance.md).
        torch.set_num_threads(1)
        keys = load_keys(config.api_keys) if config.api_keys else None
        self._engine = Engine(factory(), limits, config, threads)
        self._engine.warm_up()
        self._engine.on_lost = self._end
        self._app = create_app(self._engine, keys, [RayRecorder(SERVE_METRICS)])

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        await self._engine.check()

    def _end(self) -> None:
        """Ends the process, which can do nothing more, so that Serve starts another."""
        self._ending = asyncio.ensure_future(self._answer_and_exit())

    async def _answer_and_exit(self) -> None:
        end = time.monotonic() + self._engine.config.request_timeout_s
        while self._engine.admission.requests and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(_LAST_WORDS_S)
        os._exit(_DEVICE_LOST_EXIT)

    async def drain(self) -> int:
        """Turns new requests away from now on; the requests that are still in."""
        self._engine.admission.draining = True
        return self._engine.admission.requests


def application(
    factory: Callable[[], Extractor], limits: ImageLimits, config: ServeConfig, cpus: float, gpus: float
) -> Application:
    """The application that Serve runs.

    Args:
        factory: makes the extractor, in the replica.
        limits: what one image may cost.
        config: the endpoint.
        cpus: of each replica.
        gpus: likewise.
    """
    scale: dict[str, Any] = {"num_replicas": config.min_replicas}
    if config.max_replicas > config.min_replicas:
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=config.min_replicas,
                max_replicas=config.max_replicas,
                target_ongoing_requests=2 * batch_size(config, on_gpu=gpus > 0),  # one batch on the device, one ready
            )
        }
    deployment = ray.serve.deployment(
        name=NAME,
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": gpus,
            "runtime_env": {} if gpus else {"env_vars": {**ALLOCATOR, **_PATIENCE}},
        },
        max_ongoing_requests=config.max_queue + _MARGIN,
        max_queued_requests=config.max_queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=config.request_timeout_s + _SECOND_NET_S,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=_HEALTH_PERIOD_S,
        max_constructor_retry_count=3,
        **scale,
    )
    bound: Application = deployment(ray.serve.ingress()(Endpoint)).bind(factory, limits, config, max(1, int(cpus)))
    return bound


def start(app: Application, config: ServeConfig) -> DeploymentHandle:
    """Runs the application on the Ray that is connected, and returns once it answers."""
    ray.serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": config.host,
            "port": config.port,
            "request_timeout_s": config.request_timeout_s + _SECOND_NET_S,
        },
    )
    return ray.serve.run(app, name=NAME, route_prefix="/")


def drain(handle: DeploymentHandle, grace_s: float) -> int:
    """Turns new requests away and waits for those that are in; those that are left after ``grace_s`` seconds.

    Serve asks every replica, on whatever node. One that dies meanwhile takes its requests with it; for one that does
    not answer, what was said last counts.
    """
    end = time.monotonic() + grace_s
    left = 1
    while True:
        try:
            left = sum(handle.broadcast("drain").results(timeout_s=max(1.0, end - time.monotonic())))
        except DeploymentUnavailableError:
            return 0  # no replica is left, and with it no request
        except (TimeoutError, ray.exceptions.RayError) as error:
            _log.warning("a replica does not answer: %r", error)
        if left == 0 or time.monotonic() >= end:
            return left
        time.sleep(_POLL_S)


def stop() -> None:
    """Ends Serve: the proxies, and the replicas once their answers are out."""
    ray.serve.shutdown()
