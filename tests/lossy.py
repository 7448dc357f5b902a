"""The command ``raysight`` as it is, on a device that can be lost: the file ``$LOSE_DEVICE`` costs a replica its own.

It stands in for a GPU with an uncorrectable error, of which this machine has none: the next forward raises what torch
raises then, and so does every further one of that process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from serve import loading

if TYPE_CHECKING:
    from pipeline.extractor import Extractor

_load = loading.load_served


def load(*arguments: Any) -> Extractor:
    """As ``load_served``, on that device."""
    extractor = _load(*arguments)
    compute, marker = extractor.passes._compute, Path(os.environ["LOSE_DEVICE"])
    lost = False

    def compute_or_fail(pixels: torch.Tensor) -> Any:
        nonlocal lost
        if not lost and marker.exists():
            marker.unlink(missing_ok=True)
            lost = True
        if lost:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return compute(pixels)

    extractor.passes._compute = compute_or_fail
    return extractor


if __name__ == "__main__":
    import lossy  # by name, so that replicas can import it

    from serve.cli import main

    loading.load_served = lossy.load
    raise SystemExit(main())
