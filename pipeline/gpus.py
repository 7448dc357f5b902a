"""How many GPUs this process may use, asked of NVIDIA's driver: torch, which knows as well, takes seconds to import.

As Ray counts them for a node of its own: what it has fewer would be waited for without end.
"""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import version
from pathlib import Path

_DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/kfd", "/dev/dxg")
"""Of NVIDIA's driver, of its boards (two names), of AMD's driver, of WSL: without any of them no GPU can be used."""

_NVML = "libnvidia-ml.so.1"


def count_gpus() -> int:
    """GPUs that this process may use, ``CUDA_VISIBLE_DEVICES`` respected; none with a torch that was built without."""
    if not any(Path(file).exists() for file in _DEVICES) or version("torch").endswith("+cpu"):
        return 0
    count = _ask_nvml()
    if count is not None:
        return visible(count, os.environ.get("CUDA_VISIBLE_DEVICES"))
    import torch  # another maker's card, or a board whose driver has no such library

    return torch.cuda.device_count()


def _ask_nvml() -> int | None:
    """GPUs of the machine or container; None where there is no library to ask, or it does not answer."""
    try:
        nvml = ctypes.CDLL(_NVML)
        count = ctypes.c_uint()
        if nvml.nvmlInit_v2() != 0:
            return None
        done: int = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return count.value if done == 0 else None


def visible(count: int, chosen: str | None) -> int:
    """How many of ``count`` GPUs a value of ``CUDA_VISIBLE_DEVICES`` leaves: CUDA stops at the first one it knows not.

    Args:
        chosen: numbers or UUIDs with commas between them; None is all.
    """
    if chosen is None:
        return count
    found: set[str] = set()
    for item in map(str.strip, chosen.split(",")):
        known = int(item) < count if item.isdecimal() else item.startswith(("GPU-", "MIG-"))
        if not known or item in found:
            break
        found.add(item)
    return min(len(found), count)
