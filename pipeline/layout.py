"""The shape of what a model gives, found out without computing anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.errors import UsageError


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model gives for one image.

    Attributes:
        embedding: width of ``forward_head(…, pre_logits=True)``.
        features: shape of ``forward_features``: (tokens, width), (width, H, W), or (H, W, width); empty when it is not
            one tensor.
        prefix: how many of the tokens stand before the patches (class token, registers).
        class_token: whether the first of them is a class token.
        channels_last: whether a map is (H, W, width).
        token_grid: rows and columns of patches where the features are tokens; None where that is not known.
    """

    embedding: int
    features: tuple[int, ...]
    prefix: int
    class_token: bool
    channels_last: bool
    token_grid: tuple[int, int] | None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches, which stand row by row; None where that is not known."""
        match self.features:
            case (height, width, _) if self.channels_last:
                return height, width
            case (_, height, width):
                return height, width
        return self.token_grid

    @property
    def patches(self) -> tuple[int, int]:
        """How many patches, and the width of each."""
        match self.features:
            case (tokens, width):
                return tokens - self.prefix, width
            case (height, width, channels) if self.channels_last:
                return height * width, channels
            case (channels, height, width):
                return height * width, channels
        raise ValueError(f"features of shape {self.features}")

    def patch_tokens(self, features: torch.Tensor) -> torch.Tensor:
        """(n, patches, width) of the (n, …) unpooled features; a map is read row by row."""
        if features.ndim == 3:
            return features[:, self.prefix :]
        return features.flatten(1, 2) if self.channels_last else features.flatten(2).transpose(1, 2)


def find_layout(model: torch.nn.Module, name: str, height: int, width: int) -> Layout:
    """Runs the model over tensors that have shapes but no numbers.

    Args:
        model: of timm.
        name: for messages.
        height: of the input, in pixels.
        width: likewise.

    Raises:
        UsageError: the model cannot take images of this size, or has no embedding.
    """
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        try:
            features: Any = model.forward_features(torch.empty(1, 3, height, width))  # type: ignore[operator]
        except Exception as error:  # whatever a model's code trips over
            raise UsageError(f"{name} cannot take images of {height}×{width}: {_first_line(error)}") from error
        try:
            embedding: Any = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
        except Exception as error:
            raise UsageError(
                f"{name} has no embedding: its forward_head does not stop before the classifier"
                f" ({_first_line(error)}); raysight needs a model with pre-logits features, as most of timm's are"
            ) from error
    if not isinstance(embedding, torch.Tensor) or embedding.ndim != 2:
        shape = tuple(embedding.shape) if isinstance(embedding, torch.Tensor) else type(embedding).__name__
        raise UsageError(f"{name} has no embedding: forward_head gives {shape}, not one vector an image")
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    single = isinstance(features, torch.Tensor) and features.ndim in (3, 4)
    return Layout(
        embedding=int(embedding.shape[1]),
        features=tuple(map(int, features.shape[1:])) if single else (),
        prefix=prefix,
        class_token=getattr(model, "cls_token", None) is not None,
        channels_last=str(getattr(model, "output_fmt", "")).endswith("NHWC"),
        token_grid=_token_grid(model, int(features.shape[1]) - prefix) if single and features.ndim == 3 else None,
    )


def _token_grid(model: torch.nn.Module, patches: int) -> tuple[int, int] | None:
    grid: Any = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if isinstance(grid, tuple) and math.prod(grid) == patches:
        return int(grid[0]), int(grid[1])
    side = math.isqrt(max(patches, 0))
    return (side, side) if side and side * side == patches else None


def check_patches(model: torch.nn.Module, name: str, layout: Layout) -> None:
    """Raises UsageError when the model's patch tokens cannot be told from the rest."""
    if not layout.features:
        raise UsageError(f"--features patches: {name} gives features of several sizes, not one grid of patches")
    if layout.class_token and not hasattr(model, "num_prefix_tokens"):
        raise UsageError(
            f"--features patches: {name} has a class token, but timm does not say which of its tokens are patches"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:240] if lines else type(error).__name__
