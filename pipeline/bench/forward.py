"""The bare forward loop: what the device does when nothing else happens."""

from __future__ import annotations

import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.config import ImageLimits, ModelConfig
from pipeline.extractor import load_extractor
from pipeline.streams import ForwardStreams


def loop(
    source: str, images: int, batch_size: int, streams: int = 1, model: dict[str, Any] | None = None
) -> dict[str, Any]:
    """``Extractor.forward`` over batches prepared beforehand.

    Args:
        source: folder of images, of which ``images`` are used.
        images: how many.
        batch_size: images of one forward.
        streams: forwards at a time, each with its part of the cores.
        model: settings of ``[model]`` other than the defaults.

    Returns:
        ``steady``: images/s.
    """
    extractor = load_extractor(ModelConfig(**(model or {})), ImageLimits())
    paths = list(islice(sorted(Path(source).iterdir()), images))
    pixels = [extractor.prepare(path.read_bytes()).pixels for path in paths]
    batches = [pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size)]
    forwards = ForwardStreams(extractor, streams, max(1, len(os.sched_getaffinity(0)) // streams))
    for future in [forwards.submit(batch) for batch in batches[: 2 * streams]]:
        future.result()
    start = time.monotonic()
    for future in [forwards.submit(batch) for batch in batches]:
        future.result()
    return {"steady": len(pixels) / (time.monotonic() - start)}
