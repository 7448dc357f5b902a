"""raysight's own job under the clock."""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bench.resident import resident_mib
from pipeline.config import Config, ImageLimits, JobConfig, ModelConfig
from pipeline.job import run_job
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.extractor import Extractor

_FACTORIES = {
    "slice": "pipeline.bench.stubs:SliceExtractor",
    "empty": "pipeline.bench.stubs:EmptyExtractor",
    "patches": "pipeline.bench.stubs:patches",
    "model": "pipeline.extractor:load_extractor",
}
"""Imported where they are called: the driver is to be measured as it is, without torch."""

_SAMPLE_S = 0.25


class _Timeline(Progress):
    """Notes when the last shard was sealed."""

    def __init__(self) -> None:
        super().__init__(stream=io.StringIO())
        self.sealed = 0.0

    def finish(self) -> None:
        """The job calls this once all is sealed."""
        super().finish()
        self.sealed = time.monotonic()


def run(
    source: str, dest: str, extractor: str, job: dict[str, Any], model: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Runs one job on a fresh DEST.

    Args:
        source: folder of images.
        dest: folder that is deleted first.
        extractor: ``slice``, ``empty``, ``patches`` or ``model``.
        job: settings of ``[job]`` other than the defaults.
        model: settings of ``[model]`` other than the defaults.

    Returns:
        ``images``; ``whole``: images/s from the call to its return, Ray's start and stop included; ``steady``:
        images/s from the moment that an actor had its extractor to the last seal. Reads run ahead while the actors
        start; that time is charged with the CPU time of every read on all cores, as if none had. ``busy``: share of
        it in which a forward ran (of one actor). ``first_s`` and ``whole_s``: seconds to that moment and in all;
        ``memory``: pairs of (images done, resident MiB of the driver), sampled.
    """
    shutil.rmtree(dest, ignore_errors=True)
    Path(dest).mkdir(parents=True)
    timelines: list[_Timeline] = []

    def progress() -> Progress:
        timelines.append(_Timeline())
        return timelines[-1]

    stop, samples = threading.Event(), list[tuple[int, float]]()
    sampler = threading.Thread(target=_sample, args=(timelines, samples, stop), daemon=True)
    sampler.start()
    config = Config((source,), dest, model=ModelConfig(**(model or {})), job=JobConfig(**job))
    moments = Path(f"{dest}.moments")
    moments.unlink(missing_ok=True)
    factory = functools.partial(_noting, _FACTORIES[extractor], str(moments))
    start = time.monotonic()
    summary = run_job(config, factory=factory, progress=progress, say=lambda _: None)
    end = time.monotonic()
    stop.set()
    sampler.join()
    samples.append((timelines[0].rows, resident_mib()))
    assert summary.complete, "the job did not end"
    _, ready, *_ = map(float, moments.read_text().split())  # the first is that of the model loaded for the driver
    log, working = run_log(dest), timelines[0].sealed - ready
    return {
        "images": summary.rows,
        "rejects": summary.rejects,
        "whole": summary.rows / (end - start),
        "steady": summary.rows / (working + log["read_cpu_seconds"] / len(os.sched_getaffinity(0))),
        "busy": log["forward_seconds"] / working,
        "first_s": ready - start,
        "whole_s": end - start,
        "memory": samples,
    }


def _noting(factory: str, moments: str, model: ModelConfig) -> Extractor:
    """Makes an extractor, and notes when it was there, by the clock that all processes of a Linux machine share."""
    module, _, name = factory.partition(":")
    extractor: Extractor = getattr(importlib.import_module(module), name)(model, ImageLimits())
    with Path(moments).open("a") as file:
        file.write(f"{time.monotonic()}\n")
    return extractor


def run_log(dest: str) -> dict[str, Any]:
    """The figures that the one run of a dataset left."""
    (log,) = Path(dest).glob("_raysight/run-*.json")
    values: dict[str, Any] = json.loads(log.read_text())
    return values


def _sample(timelines: list[_Timeline], samples: list[tuple[int, float]], stop: threading.Event) -> None:
    while not stop.wait(_SAMPLE_S):
        samples.append((timelines[0].rows if timelines else 0, resident_mib()))
