"""Extractors for tests of the job: real decoding and a real model, with a delay or a trap built in.

Workers import this module by name (``tests/driver.py`` puts its folder on their path).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.config import ImageLimits, ModelConfig
from pipeline.extractor import Extractor, load_extractor
from pipeline.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.prepared import Prepared

POISON = b"raysight-test-poison"
"""In a JPEG comment: decoding it ends the process."""


DEVICE = threading.Lock()
"""Of a worker process: what is slow is so for all its streams together."""


class SlowExtractor(Extractor):
    """Takes 20 ms more for each image, so that a test can step in."""

    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        with DEVICE:
            time.sleep(0.02 * len(batch))
        return super().forward(batch)


class TracedExtractor(SlowExtractor):
    """Leaves a byte in $TEST_TRACE/PID with each forward."""

    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        with Path(os.environ["TEST_TRACE"], str(os.getpid())).open("a") as trace:
            trace.write(".")
        return super().forward(batch)


class PoisonedPreprocessor(Preprocessor):
    """Stands for a decoder with a memory error, which some library complains about."""

    def prepare(self, data: bytes | memoryview) -> Prepared:
        logging.getLogger("somebody").warning("decoding")
        if POISON in bytes(data):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(data)


def slow(model: ModelConfig) -> Extractor:
    extractor = load_extractor(model, ImageLimits())
    extractor.__class__ = SlowExtractor
    return extractor


def traced(model: ModelConfig) -> Extractor:
    extractor = load_extractor(model, ImageLimits())
    extractor.__class__ = TracedExtractor
    return extractor


def poisoned(model: ModelConfig) -> Extractor:
    extractor = load_extractor(model, ImageLimits())
    extractor.preprocessor.__class__ = PoisonedPreprocessor
    return extractor


class SlowerExtractor(Extractor):
    """Takes 200 ms more for each image: time enough for a pool to grow."""

    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        with DEVICE:
            time.sleep(0.2 * len(batch))
        return super().forward(batch)


def slower(model: ModelConfig) -> Extractor:
    extractor = load_extractor(model, ImageLimits())
    extractor.__class__ = SlowerExtractor
    return extractor


class FailingExtractor(Extractor):
    """Loses its device in the third batch of the first two processes; each leaves a file in $TEST_LOST_DEVICES."""

    batches = 0

    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        folder = Path(os.environ["TEST_LOST_DEVICES"])
        with DEVICE:
            self.batches += 1
            if self.batches == 3 and len(list(folder.iterdir())) < 2:
                (folder / str(os.getpid())).touch()
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().forward(batch)


def failing(model: ModelConfig) -> Extractor:
    extractor = load_extractor(model, ImageLimits())
    extractor.__class__ = FailingExtractor
    return extractor
