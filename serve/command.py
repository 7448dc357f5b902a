"""``raysight serve``: the endpoint on this machine, from the start of Ray to the last answer."""

from __future__ import annotations

import functools
import io
import logging
import os
import socket
import sys
import threading
from contextlib import ExitStack, redirect_stdout
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.options import add_config_option, add_model_options, add_setting
from pipeline.settings import load_settings
from serve import ingress
from serve.auth import is_loopback, load_keys
from serve.outputs import available

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from pipeline.extractor import Extractor
    from pipeline.sections import ServeConfig, Settings


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``serve`` to the root parser."""
    parser = commands.add_parser("serve", help="answer over HTTP with the features of images")
    add_config_option(parser)
    add_model_options(parser)
    group = parser.add_argument_group("serve")
    add_setting(group, "serve.host", "address to listen on; any but a loopback one needs --api-keys", metavar="HOST")
    add_setting(group, "serve.port", "TCP port")
    add_setting(
        group,
        "serve.api_keys",
        "a file with the SHA-256 of an API key a line",
        metavar="FILE",
        default="none, and so only this machine is answered",
    )
    parser.set_defaults(run=run_serve)


def run_serve(options: argparse.Namespace) -> int:
    """``raysight serve``. Exits 0 after SIGINT or SIGTERM, once what was in flight is answered."""
    serve(load_settings(options), _say_to_stderr)
    return 0


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Runs the endpoint until SIGINT or SIGTERM.

    Raises:
        UsageError: nothing was started: the model, the keys, the address or the machine do not allow it.
    """
    import torch

    from pipeline.cluster import local_ray, this_machine
    from pipeline.interrupt import Interruptible
    from pipeline.precision import check_precision
    from serve.loading import load_served

    config, limits = settings.serve, settings.limits
    _check_access(config)
    (node,) = this_machine()
    gpus = config.gpus_per_replica if config.gpus_per_replica is not None else (1.0 if node.gpus else 0.0)
    cpus = config.cpus_per_replica or max(1.0, node.cpus / max(config.max_replicas, config.min_replicas))
    _check_room(config, cpus, gpus, node.cpus, node.gpus)
    check_precision(settings.model.precision, "cuda" if gpus else "cpu")
    device = None if gpus else torch.device("cpu")
    make = functools.partial(load_served, settings.model, limits, device, settings.storage)
    extractor = make()  # here first, since what is wrong with it is a message here and a failed deployment there
    say(f"starting {_describe(extractor)}")
    del extractor
    logging.getLogger("ray").setLevel(logging.ERROR)
    stop = threading.Event()
    os.environ.update(ingress.environment(config))  # of the proxies, which Ray starts
    with ExitStack() as at_the_end, Interruptible(stop, say), local_ray(int(node.cpus)):
        from serve import deployment

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        handle = deployment.start(deployment.application(make, limits, config, cpus, gpus), config)
        say(f"the page is at http://{_shown(config.host)}:{config.port}/, the API's documentation at /docs")
        stop.wait()
        left = deployment.drain(handle, config.grace_s)
        if left:
            say(f"{left} request(s) were not answered within grace_s, {config.grace_s:g} s")
        # Ray says there that the calls have failed which ended its own actors.
        at_the_end.enter_context(redirect_stdout(io.StringIO()))
        deployment.stop()
    say("stopped")


def _check_access(config: ServeConfig) -> None:
    """Raises UsageError when strangers could come in, or nobody."""
    if config.api_keys is not None:
        load_keys(config.api_keys)
    elif not is_loopback(config.host):
        raise UsageError(
            f"--host {config.host} can be reached from other machines: give --api-keys FILE, or listen on 127.0.0.1"
        )
    try:
        socket.create_server((config.host, config.port), family=_family(config.host)).close()
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]  # Python says the address a second time
        raise UsageError(f"cannot listen on {config.host}:{config.port}: {why}") from error


def _check_room(config: ServeConfig, cpus: float, gpus: float, node_cpus: float, node_gpus: float) -> None:
    """Raises UsageError when the replicas do not fit: Serve would wait for them without end."""
    if config.max_replicas < config.min_replicas:
        raise UsageError(f"[serve] min_replicas {config.min_replicas} is more than max_replicas {config.max_replicas}")
    needed = {"CPUs": (config.max_replicas * cpus, node_cpus), "GPUs": (config.max_replicas * gpus, node_gpus)}
    for name, (wanted, there) in needed.items():
        if wanted > there + 1e-9:
            raise UsageError(
                f"{config.max_replicas} replica(s) want {wanted:g} {name}, and this machine has {there:g}; set [serve]"
                f" {name.lower()}_per_replica or max_replicas lower"
            )


def _describe(extractor: Extractor) -> str:
    fingerprint = extractor.fingerprint
    outputs = ", ".join(available(extractor.outputs))
    return (
        f"{fingerprint.model} in {fingerprint.precision} on the {'GPU' if extractor.device.type == 'cuda' else 'CPU'},"
        f" which gives {outputs}"
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104  what it is shown as
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _say_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
