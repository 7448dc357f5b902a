"""What the forward computes in: asked for, resolved for a device, and put into effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import timm
import torch

from pipeline.errors import UsageError
from pipeline.model import check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.config import Precision

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cast(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The model in a precision, in place, its batch norms' statistics left in float32 as autocast leaves them.

    Rounded, they would double the error of a convolutional network in bf16 (docs/tolerances.md).
    """
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    states = [norm.state_dict() for norm in norms]  # tensors of their own, which the cast leaves alone
    model.to(dtype)
    for norm, state in zip(norms, states, strict=True):
        norm.float().load_state_dict(state)
    return model


def forbid_tf32() -> None:
    """fp32 means fp32: as it comes, torch has convolutions of a GPU round their input to the ten bits of TF32.

    Matrix products it leaves alone. It holds for the whole process; half precisions know no TF32.
    """
    torch.backends.cudnn.allow_tf32 = False


def resolve_precision(precision: Precision, name: str, device: str) -> Precision:
    """``auto`` as what is fast and sound for a model on a kind of device.

    bf16 where the hardware multiplies it: on a GPU, and on a CPU with AVX512-BF16 or AMX (without, it runs several
    times slower than fp32). Networks with batch norms lose too much in its eight bits (docs/tolerances.md): they run
    in fp16 on a GPU, which has eleven, and in fp32 on a CPU.

    Args:
        precision: what was asked for; anything but ``auto`` is what comes back.
        name: of the timm model.
        device: ``cuda`` or ``cpu``; of the workers, which need not be this machine's.
    """
    if precision != "auto":
        return precision
    sensitive = _has_batch_norms(name)
    if device == "cuda":
        old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
        return "fp16" if sensitive or old else "bf16"
    return "bf16" if cpu_multiplies_bf16() and not sensitive else "fp32"


def check_precision(precision: Precision, device: str) -> None:
    """Refuses what a kind of device cannot do at any useful speed. Raises UsageError."""
    if precision == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU; a CPU runs fp32 and bf16")


def _has_batch_norms(name: str) -> bool:
    check_name(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    return any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())  # noqa: SLF001


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 dot products in hardware (x86: AVX512-BF16 or AMX-BF16; Arm: BF16)."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
