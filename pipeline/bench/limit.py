"""What no pipeline can exceed: ``prepare`` alone on all cores, its bytes in memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.bench.stubs import data_config
from pipeline.config import ImageLimits, ModelConfig
from pipeline.preprocess import Preprocessor, resolve_preset

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Barrier

    from pipeline.config import Preset
    from pipeline.prepared import Prepared

_DISTINCT = 300
_WARM_UP = 50


def threads(source: str, images: int, preset: Preset = "timm") -> dict[str, Any]:
    """A thread a core. Returns ``steady``: images/s."""
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    data, prepare = _load(source, images), preprocessor(preset).prepare
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(prepare, data[:_WARM_UP]))
        start = time.monotonic()
        list(pool.map(lambda part: _loop(prepare, data, part), [images // cores] * cores))
        seconds = time.monotonic() - start
    return {"steady": images // cores * cores / seconds}


def processes(source: str, images: int, preset: Preset = "timm") -> dict[str, Any]:
    """A process a core. Returns ``steady``: images/s."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    barrier, spans = context.Barrier(cores), context.SimpleQueue()
    workers = [
        context.Process(target=_timed_loop, args=(source, images // cores, preset, barrier, spans), daemon=True)
        for _ in range(cores)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, "a process of the limit failed"
    ends = [spans.get() for _ in workers]
    seconds = max(end for _, end in ends) - min(start for start, _ in ends)
    return {"steady": images // cores * cores / seconds}


def _timed_loop(
    source: str, images: int, preset: Preset, barrier: Barrier, spans: SimpleQueue[tuple[float, float]]
) -> None:
    torch.set_num_threads(1)
    data, prepare = _load(source, images), preprocessor(preset).prepare
    _loop(prepare, data, min(_WARM_UP, images))
    barrier.wait()
    start = time.monotonic()  # one clock for all processes of a Linux machine
    _loop(prepare, data, images)
    spans.put((start, time.monotonic()))


def _load(source: str, images: int) -> list[bytes]:
    return [path.read_bytes() for path in islice(sorted(Path(source).iterdir()), min(images, _DISTINCT))]


def preprocessor(preset: Preset = "timm") -> Preprocessor:
    """The default model's."""
    model = ModelConfig()
    return Preprocessor(resolve_preset(data_config(model.name), preset, model.implementation), ImageLimits())


def _loop(prepare: Callable[[bytes], Prepared], data: list[bytes], images: int) -> None:
    for number in range(images):
        prepare(data[number % len(data)])
