"""A timm model by name, with weights from the hub, a checkpoint file or a seed."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data import resolve_model_data_config

from pipeline.errors import HubError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.config import Precision

_RANDOM = "random:"
_CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(name: str, weights: str, image_size: int | None = None) -> torch.nn.Module:
    """A timm model without classifier, on the CPU, in float32 and evaluation mode.

    Args:
        name: timm's name, with or without pretrained tag.
        weights: ``pretrained``, a checkpoint file, or ``random:SEED`` (timm's own initialisation, seeded).
        image_size: side of the input in pixels where it is not the model's own; a model with position embeddings is
            built for it, and timm resamples those of the weights.

    Raises:
        UsageError: no such model, no such file, or a file that does not fit the model.
        HubError: the hub is out of reach.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]
        hint = f"; names close to it: {', '.join(close)}" if close else "; `timm.list_models()` names them all"
        raise UsageError(f"timm {timm.__version__} has no model {name!r}{hint}")
    sizing = _sizing(name, image_size)
    if weights.startswith(_RANDOM):
        model = _random_model(name, weights, sizing)
    elif weights == "pretrained":
        model = _pretrained_model(name, sizing)
    else:
        model = _checkpoint_model(name, Path(weights), sizing)
    model.eval().requires_grad_(requires_grad=False)
    return model


def _sizing(name: str, image_size: int | None) -> dict[str, int]:
    """The argument that builds a model for another input size; models without position embeddings need none."""
    if image_size is None:
        return {}
    with torch.device("meta"):
        patch_embed = getattr(timm.create_model(name), "patch_embed", None)
    return {"img_size": image_size} if hasattr(patch_embed, "img_size") else {}


def _random_model(name: str, weights: str, sizing: dict[str, int]) -> torch.nn.Module:
    seed = weights.removeprefix(_RANDOM)
    if not seed.isdecimal():
        raise UsageError(f"--weights {weights}: the seed after {_RANDOM!r} must be a whole number, as in random:0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return _create(name, pretrained=False, **sizing)


def _pretrained_model(name: str, sizing: dict[str, int]) -> torch.nn.Module:
    if timm.get_pretrained_cfg(name, allow_unregistered=True) is None:
        raise UsageError(f"timm has no pretrained weights for {name!r}; give --weights FILE or --weights random:SEED")
    try:
        return _create(name, pretrained=True, **sizing)
    except Exception as error:
        # Everything a hub client raises: connection, proxy, certificate, authentication, cache and offline errors.
        raise HubError(
            f"the pretrained weights of {name} could not be fetched ({_first_line(error)}). Ways out: give the hub a"
            " route (HTTPS_PROXY), or a mirror (HF_ENDPOINT); fill its cache on a machine that has one (HF_HOME,"
            " then HF_HUB_OFFLINE=1); download the checkpoint and give --weights FILE; or, to try things out only,"
            " --weights random:0"
        ) from error


def _checkpoint_model(name: str, path: Path, sizing: dict[str, int]) -> torch.nn.Module:
    if path.suffix not in _CHECKPOINT_SUFFIXES:
        raise UsageError(
            f"--weights {path}: give 'pretrained', 'random:SEED', or a file ending in {', '.join(_CHECKPOINT_SUFFIXES)}"
        )
    if not path.is_file():
        raise UsageError(f"--weights {path}: there is no such file on this machine")
    try:
        overlay = {"file": str(path), "hf_hub_id": None, "url": ""}
        return _create(name, pretrained=True, pretrained_cfg_overlay=overlay, **sizing)
    except (RuntimeError, KeyError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise UsageError(f"--weights {path} does not fit {name}: {_first_line(error, lines=6)}") from error


def _create(name: str, **options: Any) -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model(name, num_classes=0, **options)
    return model


def data_config(model: torch.nn.Module) -> Mapping[str, Any]:
    """The model's own preprocessing, in timm's terms."""
    config: Mapping[str, Any] = resolve_model_data_config(model)
    return config


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the state dict (hex), whatever file it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """``auto`` as what is fast and sound on the device: ``bf16`` where the hardware multiplies it, else ``fp32``.

    On a CPU without AVX512-BF16 or AMX, bf16 runs several times slower than fp32 (docs/performance.md).
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 dot products in hardware (x86: AVX512-BF16 or AMX-BF16; Arm: BF16)."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _first_line(error: BaseException, lines: int = 1) -> str:
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(text[:lines])}" if text else type(error).__name__
