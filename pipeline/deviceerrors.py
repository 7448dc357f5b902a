"""Which errors end a device for this process, and which only mean that a batch was too large."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOST = ("CUDA error", "device-side assert triggered", "CUDNN_STATUS", "cuDNN error", "CUBLAS_STATUS", "nvjpeg failed")
"""What torch and its libraries call an error of the device, where it is a plain RuntimeError."""

_TOO_LARGE = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device has too little memory for what it was asked; it goes on with less."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return _of_device(error) and any(text in str(error) for text in _TOO_LARGE)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error, or what caused it, sticks: every further call of this process on the device fails as well.

    CUDA tells such errors (illegal address, device-side assert, ECC) from harmless ones by a code that does not reach
    Python in every version, so whatever the device reports but a lack of memory counts: a new process does no harm.
    """
    return any(_of_device(one) and not is_out_of_memory(one) for one in _chain(error))


def _of_device(error: BaseException) -> bool:
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
