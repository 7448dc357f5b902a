"""From JPEGs to features without a job: decode threads, batches in hand, the device."""

from __future__ import annotations

import io
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from pipeline.errors import UsageError
from pipeline.streams import ForwardStreams

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from pipeline.extractor import Extractor
    from pipeline.prepared import Prepared
    from pipeline.streams import Forwarded

_SIZE = (500, 375)
_DISTINCT = 32
_QUALITY = 87
_WARM_UP = 2


def make_jpegs(folder: Path | None) -> list[bytes]:
    """The JPEGs of a folder, or made ones: 500×375, coarse shapes below fine noise, 40 to 60 kB as photographs have.

    Raises:
        UsageError: the folder has none.
    """
    if folder is not None:
        found = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
        if not found:
            raise UsageError(f"--images {folder}: there are no JPEGs")
        return found
    generator = np.random.default_rng(0)
    made = []
    for _ in range(_DISTINCT):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)).resize(_SIZE)
        grain = generator.normal(0, 7, (_SIZE[1], _SIZE[0], 1))
        pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
        made.append(buffer.getvalue())
    return made


def least_cosine(extractor: Extractor, reference: Extractor, jpegs: Sequence[bytes]) -> float:
    """Of the embeddings of one extractor to those of another."""
    one, other = (
        each.forward([each.prepare(data).pixels for data in jpegs])["embedding"].astype(np.float64)
        for each in (extractor, reference)
    )
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / norms).min())


def jpeg_rates(
    extractor: Extractor, jpegs: Sequence[bytes], batch_size: int, threads: Sequence[int], seconds: float
) -> list[dict[str, float]]:
    """For each number of decode threads: ``threads``, ``rate`` in images/s, and ``busy``, the part of the time in which
    the device was held.
    """
    return [_jpeg_rate(extractor, jpegs, batch_size, count, seconds) for count in threads]


def _jpeg_rate(
    extractor: Extractor, jpegs: Sequence[bytes], batch_size: int, threads: int, seconds: float
) -> dict[str, float]:
    """Keeps as much in hand as a worker of the job does (``pipeline.actor``)."""
    streams = ForwardStreams(extractor, 1, torch.get_num_threads(), 2 if extractor.device.type == "cuda" else 1)
    running: deque[Future[Forwarded]] = deque()
    window: deque[Future[Prepared]] = deque()
    done: list[Forwarded] = []
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        source = cycle(jpegs)
        for _ in range((1 + streams.in_hand) * batch_size + threads):
            window.append(pool.submit(extractor.prepare, next(source)))
        while len(done) <= _WARM_UP or time.perf_counter() - begun < seconds:
            batch = []
            for _ in range(batch_size):
                window.append(pool.submit(extractor.prepare, next(source)))
                batch.append(window.popleft().result().pixels)
            running.append(streams.submit(batch))
            if len(running) > streams.in_hand:
                done.append(running.popleft().result())
                if len(done) == _WARM_UP:
                    begun = time.perf_counter()
        passed = time.perf_counter() - begun
        for waiting in window:
            waiting.cancel()
    for last in running:
        last.result()
    counted = done[_WARM_UP:]
    return {
        "threads": threads,
        "rate": len(counted) * batch_size / passed,
        "busy": min(1.0, sum(item.seconds for item in counted) / passed),  # the first began before the clock did
    }
