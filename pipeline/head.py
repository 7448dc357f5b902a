"""Classification of what a model gives: its own classifier, or a linear one from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from pipeline.checkpoint import read_checkpoint
from pipeline.errors import UsageError
from pipeline.model import digest

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.layout import Layout

TOP = 5
"""Classes that are kept of each image."""


class LinearHead(torch.nn.Module):
    """A linear classifier over the embedding, or over [class token, mean of patch tokens] (Meta's DINOv2).

    Computes in float32, whatever the model's precision.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, layout: Layout, *, over_tokens: bool) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        self.linear.load_state_dict({"weight": weight, "bias": bias})
        self.over_tokens = over_tokens
        self._layout = layout

    @property
    def digest(self) -> str:
        """SHA-256 of weight and bias (hex)."""
        return digest(self.linear.state_dict())

    def forward(self, features: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """(n, C) logits of the (n, …) unpooled features and the (n, dim) embeddings."""
        if self.over_tokens:
            patches = self._layout.patch_tokens(features).float().mean(dim=1)
            embedding = torch.cat([features[:, 0].float(), patches], dim=1)
        logits: torch.Tensor = self.linear(embedding.float())
        return logits


def load_head(path: Path, name: str, layout: Layout) -> LinearHead:
    """A head from a file: one matrix (C, D), under any name that ends in ``weight``, and perhaps a bias (C,).

    D is the width of the embedding, or twice that of the tokens: [class token, mean of patch tokens], both after the
    final norm, as in the official ``dinov2_*_linear_head.pth``.

    Args:
        path: a checkpoint.
        name: of the model, for messages.
        layout: of the model.

    Raises:
        UsageError: it is no such file, or does not fit the model.
    """
    state = read_checkpoint(path, "--head")
    weights = [key for key, value in state.items() if value.ndim == 2 and key.rpartition(".")[2] == "weight"]
    biases = [key for key in state if key not in weights]
    if len(weights) != 1 or biases not in ([], [weights[0].removesuffix("weight") + "bias"]):
        keys = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:8])
        raise UsageError(
            f"--head {path} is not linear: it should hold a weight (classes, width) and a bias, not {keys}"
        )
    weight = state[weights[0]].float()
    bias = state[biases[0]].float() if biases else torch.zeros(len(weight))
    if bias.shape != weight.shape[:1]:
        raise UsageError(f"--head {path}: the bias has shape {tuple(bias.shape)} for {len(weight)} classes")
    width = weight.shape[1]
    if width == layout.embedding:
        return LinearHead(weight, bias, layout, over_tokens=False)
    tokens = layout.features[1] if len(layout.features) == 2 and layout.class_token and layout.prefix else None
    if tokens is not None and width == 2 * tokens:
        return LinearHead(weight, bias, layout, over_tokens=True)
    wanted = f"{layout.embedding} numbers (the embedding)"
    if tokens is not None:
        wanted += f", or {2 * tokens} (class token and mean of patch tokens)"
    raise UsageError(f"--head {path} takes {width} numbers, {name} gives {wanted}")


def class_names(count: int) -> tuple[str, ...] | None:
    """What classes of a classifier of so many are called, if timm knows: 1,000 are ImageNet-1k's."""
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(count))
