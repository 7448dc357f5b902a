"""The bare forward loop: what the device does when nothing else happens."""

from __future__ import annotations

import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.config import ImageLimits, ModelConfig
from pipeline.extractor import load_extractor

_WARM_UP = 2


def loop(
    source: str, images: int, batch_size: int, threads: int | None = None, model: dict[str, Any] | None = None
) -> dict[str, Any]:
    """``Extractor.forward`` over batches prepared beforehand.

    Args:
        source: folder of images, of which ``images`` are used.
        images: how many.
        batch_size: images of one forward.
        threads: of torch; None is the cores.
        model: settings of ``[model]`` other than the defaults.

    Returns:
        ``steady``: images/s; ``seconds``: the median of a batch.
    """
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    extractor = load_extractor(ModelConfig(**(model or {})), ImageLimits())
    paths = list(islice(sorted(Path(source).iterdir()), images))
    pixels = [extractor.prepare(path.read_bytes()).pixels for path in paths]
    batches = [pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size)]
    for batch in batches[:_WARM_UP]:
        extractor.forward(batch)
    spans = []
    start = time.monotonic()
    for batch in batches:
        before = time.monotonic()
        extractor.forward(batch)
        spans.append(time.monotonic() - before)
    return {"steady": len(pixels) / (time.monotonic() - start), "seconds": sorted(spans)[len(spans) // 2]}
