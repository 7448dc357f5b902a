"""Errors of torch's own classes, with the texts that torch gives them."""

from __future__ import annotations

import pytest
import torch

from pipeline.deviceerrors import is_device_lost, is_out_of_memory
from pipeline.errors import RejectError, StorageError

LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: misaligned address\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle, …)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
]

TOO_LARGE = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]

OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ValueError("CUDA error: said by somebody else"),
    RejectError("decode", "Corrupt", "not a JPEG"),
    StorageError("the store is down"),
    MemoryError(),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_the_device_is_lost(error: BaseException) -> None:
    assert is_device_lost(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", TOO_LARGE, ids=str)
def test_a_lack_of_memory_is_no_loss(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_device_lost(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_neither(error: BaseException) -> None:
    assert not is_device_lost(error)
    assert not is_out_of_memory(error)


def test_an_error_that_the_loss_caused_counts_as_well() -> None:
    def fail() -> None:
        try:
            raise LOST[0]
        except RuntimeError as error:
            raise RejectError("decode", "Corrupt", "AcceleratorError") from error

    with pytest.raises(RejectError) as caught:
        fail()
    assert is_device_lost(caught.value)


def test_what_torch_raises_on_this_machine_for_a_bad_pass_is_no_loss() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(3, 4)(torch.zeros(2, 5))
    assert not is_device_lost(caught.value)
