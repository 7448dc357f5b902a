"""The Ray that runs a job: started for it on this machine, or one that exists already."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import RaysightError
from pipeline.gpus import count_gpus

if TYPE_CHECKING:
    from collections.abc import Iterator

_STDERR = 2
_KNOCK_S = 5.0
_IDLE_WORKER_MS = 600_000


@dataclass(frozen=True, slots=True)
class Node:
    """Logical resources of one machine: CPUs, GPUs, bytes of memory."""

    cpus: float
    gpus: float
    memory: float


def cluster_address(address: str | None) -> str | None:
    """The cluster to use: as given, else ``RAY_ADDRESS`` (Ray sets it inside a submitted job), else None."""
    return address or os.environ.get("RAY_ADDRESS") or None


def this_machine() -> list[Node]:
    """The node that a local Ray would have, without starting it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Ray sets about 70 % of the memory aside for workers, the rest for its object store.
    return [Node(len(os.sched_getaffinity(0)), count_gpus(), 0.7 * memory)]


# A thread that still waits for results when a job ends must not start a Ray of its own.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """Ray on this machine, for as long as the block runs: no dashboard, token authentication, ports on loopback."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns the user is reported by the job itself
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # What Ray does for a lone laptop, and no option of its: all its ports are on loopback.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # A read that runs ahead waits for the actors, and Ray ends a process that waited for a second, where there are more
    # processes than CPUs; to start another takes two seconds of a core.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(_IDLE_WORKER_MS))
    import ray

    with _signal_handlers_kept(), _announcement_dropped():
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    try:
        _spare()
        yield
    finally:
        ray.shutdown()


def _spare() -> None:
    """Ends what one machine has no use for, and ray.init has no option for: processes of Ray's head.

    The autoscaler's monitor, which also keeps Ray from ending for a second once its coordinator is gone; the reader of
    log files, whose lines nobody is sent; the dashboard's server, which serves no dashboard. A version of Ray without
    these names keeps them and is no worse otherwise, and a test notices.
    """
    import ray

    worker = getattr(getattr(ray, "_private", None), "worker", None)
    node = getattr(worker, "_global_node", None)
    for name in ("kill_monitor", "kill_log_monitor", "kill_dashboard"):
        with suppress(AttributeError, TypeError, AssertionError):
            getattr(node, name)(check_alive=False)


@contextmanager
def existing_ray(address: str) -> Iterator[None]:
    """A running cluster, left running afterwards.

    Raises:
        RaysightError: nobody answers there.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    _knock(address)
    try:
        with _signal_handlers_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RaysightError(f"--address {address}: cannot reach this Ray cluster: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray ends the whole process when nobody listens at a ``host:port``; so that is found out before."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        return  # "auto" or a client URL: Ray raises for these
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise RaysightError(f"--address {address}: cannot reach this Ray cluster: {error}") from error


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts, and then ends the process at once; a job wants to drain."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def _announcement_dropped() -> Iterator[None]:
    """Ray's native half announces on stderr that it obeys RAY_BACKEND_LOG_LEVEL; all else there is passed on."""
    with tempfile.TemporaryFile() as caught:
        terminal = os.dup(_STDERR)
        os.dup2(caught.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(terminal, _STDERR)
            os.close(terminal)
            caught.seek(0)
            for line in caught:
                if b"RAY_BACKEND_LOG_LEVEL" not in line:
                    os.write(_STDERR, line)


def cluster_nodes() -> list[Node]:
    """The living nodes of the cluster at hand."""
    import ray

    return [
        Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), node["Resources"].get("memory", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def free_resources() -> str:
    """What the cluster has free just now, for a person."""
    import ray

    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs, {free.get('memory', 0) / 2**30:.1f} GiB free"
