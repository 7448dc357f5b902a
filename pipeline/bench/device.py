"""What a device does with a model when nothing else happens, and what the model could at most ask of it."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.deviceerrors import is_out_of_memory
from pipeline.model import load_model
from pipeline.precision import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.extractor import Extractor

_WARM_UP = 3
_ROUNDS = 3


class Card:
    """A device and a clock for it.

    Attributes:
        device: what is measured.
        name: as the driver has it.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        """Args: seconds: for each figure at least."""
        self.device = device
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
        self._seconds = seconds

    @torch.inference_mode()
    def seconds(self, call: Callable[[], object]) -> float:
        """Of one call on the device, of many in a row; the best of three rounds."""
        synchronize = torch.get_device_module(self.device).synchronize
        for _ in range(_WARM_UP):
            call()
        synchronize()
        best = float("inf")
        for _ in range(_ROUNDS):
            calls, start = 0, time.perf_counter()
            while True:
                call()
                calls += 1
                # Calls are queued far faster than they are done: the clock must look at the device now and then.
                if calls % _WARM_UP == 0:
                    synchronize()
                    if (passed := time.perf_counter() - start) > self._seconds / _ROUNDS:
                        break
            best = min(best, passed / calls)
        return best


def gemm_peak(card: Card, precision: str, side: int) -> float:
    """TFLOP/s of a product of square matrices of random numbers, in a precision."""
    one, other = (torch.randn(side, side, device=card.device).to(DTYPES[precision]) for _ in range(2))
    return 2 * side**3 / card.seconds(lambda: one @ other) / 1e12


def model_flops(extractor: Extractor) -> float:
    """GFLOP of the matrix products of one image, two for a multiplication and its addition, as torch counts them."""
    config = extractor.preprocessor.config
    pixels = torch.zeros(1, config.height, config.width, 3, dtype=torch.uint8, device=extractor.device)
    # Attention as plain products: torch does not count its fused forms on every device.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        extractor.encode(pixels)
    return float(counter.get_total_flops()) / 1e9


def forward_rates(card: Card, extractor: Extractor, sizes: Sequence[int]) -> dict[int, float]:
    """Images/s of the extractor's pass over pixels that lie on the device, by batch, as far as memory reaches."""
    config = extractor.preprocessor.config
    shape = (config.height, config.width, 3)
    pixels = torch.randint(0, 256, (max(sizes), *shape), dtype=torch.uint8, device=card.device)
    return _rates(card, lambda size: extractor.passes.bare(pixels[:size]), sizes)


def reference_rates(card: Card, extractor: Extractor, name: str, sizes: Sequence[int]) -> dict[int, float]:
    """Images/s the way timm's own benchmark.py goes with ``--amp --channels-last``: synthetic float input, autocast.

    In fp32 there is no autocast.
    """
    config = extractor.preprocessor.config
    dtype = DTYPES[extractor.fingerprint.precision]
    model = load_model(name, "random:0", config.height).to(card.device).to(memory_format=torch.channels_last)
    pixels = torch.randn(max(sizes), 3, config.height, config.width, device=card.device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def run(size: int) -> object:
        with torch.autocast(card.device.type, dtype, enabled=dtype != torch.float32):
            return model(pixels[:size])

    return _rates(card, run, sizes)


def _rates(card: Card, run: Callable[[int], object], sizes: Sequence[int]) -> dict[int, float]:
    rates: dict[int, float] = {}
    for size in sorted(sizes):
        try:
            rates[size] = size / card.seconds(lambda size=size: run(size))  # type: ignore[misc]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
    return rates
