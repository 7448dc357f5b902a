"""``raysight`` with settings that the command line does not offer, as a process of its own that a test can kill.

Usage: python driver.py '{"factory": "slow", "job": {"shard_rows": 16}}' extract SOURCE DEST ...
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

import pipeline.job
import serve.cli
from serve.cli import main

if TYPE_CHECKING:
    from pipeline.config import Config


def run(settings: dict[str, Any], arguments: list[str]) -> int:
    original = pipeline.job.run_job

    def run_job(config: Config, **options: Any) -> pipeline.job.Summary:
        changed = replace(
            config,
            job=replace(config.job, **settings.get("job", {})),
            storage=replace(config.storage, **settings.get("storage", {})),
        )
        # Imported where it is asked for: it imports torch, and a job that finds torch loaded loads its model beside it.
        factory = getattr(importlib.import_module("stubs"), settings["factory"]) if "factory" in settings else None
        return original(changed, factory=factory, **options)

    pipeline.job.run_job = run_job
    return main(arguments)


if __name__ == "__main__":
    serve.cli.main = functools.partial(run, json.loads(sys.argv[1]), sys.argv[2:])
    serve.cli.entry()
