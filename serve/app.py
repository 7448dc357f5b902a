"""The import target for a cluster: ``serve run serve.app:build``, ``serve build``, KubeRay's ``import_path``."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.keys import BadValueError, all_keys
from pipeline.settings import load_settings
from serve.auth import load_keys
from serve.deployment import application
from serve.loading import load_served

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve import Application


def build(args: Mapping[str, Any]) -> Application:
    """The application, from ``args`` of a Serve config file.

    Args:
        args: ``config``, a TOML file; and keys as ``section.name``, such as ``serve.max_queue``, which are stronger.
            Where the proxies listen is Serve's own setting. ``serve.cpus_per_replica`` is 1 and
            ``serve.gpus_per_replica`` 0 unless given.

    Raises:
        UsageError: something is no setting, or there are no API keys: it cannot be seen from here who comes through
            the proxies.
    """
    options = {"config": args["config"]} if "config" in args else {}
    for name, value in args.items():
        if name == "config":
            continue
        key = all_keys().get(name)
        if key is None:
            raise UsageError(f"args of serve.app:build: {name} is not a setting (see raysight config)")
        try:
            options[name] = key.parse(value) if isinstance(value, str) else key.check(value)
        except BadValueError as error:
            raise UsageError(f"args of serve.app:build: {name}: {error}") from None
    settings = load_settings(argparse.Namespace(**options))
    config = settings.serve
    if config.api_keys is None:
        raise UsageError("serve.app:build needs serve.api_keys: a file with the SHA-256 of an API key a line")
    load_keys(config.api_keys)
    return application(
        functools.partial(load_served, settings.model, settings.limits, None, settings.storage),
        settings.limits,
        config,
        cpus=config.cpus_per_replica or 1.0,
        gpus=config.gpus_per_replica or 0.0,
    )
