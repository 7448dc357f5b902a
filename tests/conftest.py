"""What many tests share: real photographs, and weights in which every block counts."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import skimage
import sklearn
import timm
import torch
from s3_server import bucket as bucket
from s3_server import s3 as s3
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable

# Ray reads its token once in a process, and a cluster of this process must know the same one.
os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})

# Photographs alone, of the pictures in the wheels of scikit-image and scikit-learn; 205×246 to 1411×1411 pixels.
_SKIMAGE = (
    "astronaut.png",  # RGB
    "camera.png",  # grayscale
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_SKLEARN = ("china.jpg", "flower.jpg")


@pytest.fixture(scope="session")
def photograph_paths() -> dict[str, Path]:
    """File name → path of fifteen real photographs (JPEG and PNG, RGB and grayscale)."""
    folders = {
        Path(skimage.__file__).parent / "data": _SKIMAGE,
        Path(sklearn.__file__).parent / "datasets" / "images": _SKLEARN,
    }
    paths = {name: folder / name for folder, names in folders.items() for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    assert not missing, f"the wheels no longer ship {missing}"
    return paths


@pytest.fixture(scope="session")
def photographs(photograph_paths: dict[str, Path]) -> dict[str, bytes]:
    """File name → bytes of the photographs of ``photograph_paths``."""
    return {name: path.read_bytes() for name, path in photograph_paths.items()}


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_checkpoint(model_name, seed=0)`` → a .safetensors file of seeded weights in which every block counts.

    timm's own initialisation would not do: LayerScale starts at 1e-5 and the last norm of a residual block at 0, so
    that whole blocks could be wrong without a difference in the features. The same name and seed give the same file.
    """
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(name: str, seed: int = 0) -> Path:
        path = folder / f"{name}-{seed}.safetensors"
        if not path.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                state = timm.create_model(name).state_dict()
                save_file({key: _perturbed(key, value).contiguous() for key, value in state.items()}, path)
        return path

    return make


def _perturbed(key: str, value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    if value.ndim > 1:
        return value + 0.02 * torch.randn_like(value)  # matrices, filters, tokens, position embeddings
    if key.endswith(("weight", "gamma", "running_var")):  # norms and LayerScale
        return torch.empty_like(value).uniform_(0.5, 1.0)
    return 0.1 * torch.randn_like(value)  # biases, running means
