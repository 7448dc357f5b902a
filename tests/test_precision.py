"""What ``--precision`` means, and what ``auto`` makes of a model and a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ImageLimits, ModelConfig
from pipeline.errors import UsageError
from pipeline.extractor import load_extractor
from pipeline.precision import check_precision, cpu_multiplies_bf16, resolve_precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_asked_for_is_taken(precision: Any) -> None:
    assert resolve_precision(precision, "vit_tiny_patch16_224", "cpu") == precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"bf16": True}, "bf16"),
        ({}, "fp32"),
    ],
)
def test_auto_on_a_cpu_is_bf16_where_the_hardware_multiplies_it(
    capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", "vit_tiny_patch16_224", "cpu") == expected
    assert resolve_precision("auto", "resnet18", "cpu") == "fp32"  # batch norms lose too much in bf16


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_on_a_gpu_is_bf16_from_ampere_on(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve_precision("auto", "vit_tiny_patch16_224", "cuda") == expected


def test_auto_for_gpus_elsewhere_is_bf16_and_fp16_with_batch_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_precision("auto", "vit_tiny_patch16_224", "cuda") == "bf16"
    assert resolve_precision("auto", "resnet18", "cuda") == "fp16"


def test_fp16_on_a_cpu_is_refused() -> None:
    check_precision("fp16", "cuda")
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        check_precision("fp16", "cpu")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux lists its CPU's instructions there")
def test_what_the_cpu_can_do_is_what_the_kernel_says() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert cpu_multiplies_bf16() == bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def test_fp32_is_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_extractor(ModelConfig("test_vit", "random:0", precision="fp32"), ImageLimits(), torch.device("cpu"))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
