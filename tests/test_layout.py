"""The shape of what a model gives, and models that do not give what is needed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from pipeline.errors import UsageError
from pipeline.layout import Layout, check_patches, find_layout

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("name", "options", "size", "expected"),
    [
        ("test_vit", {}, 160, Layout(64, (101, 64), 1, True, False, (10, 10))),
        ("resnet18", {}, 96, Layout(512, (512, 3, 3), 0, False, False, None)),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
            224,
            Layout(64, (7, 7, 64), 0, False, True, None),
        ),
    ],
)
def test_tokens_and_maps_of_either_order_are_told_apart(
    name: str, options: dict[str, Any], size: int, expected: Layout
) -> None:
    model = timm.create_model(name, num_classes=0, **options).eval()
    assert find_layout(model, name, size, size) == expected


@pytest.mark.parametrize(
    ("features", "prefix", "channels_last", "patches", "grid", "second"),
    [
        ((5, 8), 1, False, (4, 8), None, lambda values: values[2]),
        ((8, 2, 3), 0, False, (6, 8), (2, 3), lambda values: values[:, 0, 1]),
        ((2, 3, 8), 0, True, (6, 8), (2, 3), lambda values: values[0, 1]),
    ],
    ids=["tokens", "a map", "a map, channels last"],
)
def test_patches_are_counted_and_read_row_by_row(
    features: tuple[int, ...],
    prefix: int,
    channels_last: bool,
    patches: tuple[int, int],
    grid: tuple[int, int] | None,
    second: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    layout = Layout(8, features, prefix, prefix > 0, channels_last, None)
    assert (layout.patches, layout.grid) == (patches, grid)
    values = torch.arange(math.prod(features)).reshape(1, *features)
    tokens = layout.patch_tokens(values)
    assert tuple(tokens.shape) == (1, *patches)
    assert torch.equal(tokens[0, 1], second(values[0]))


class Odd(torch.nn.Module):
    """Gives whatever it is told to."""

    def __init__(self, features: object, head: object) -> None:
        super().__init__()
        self._features = features
        self._head = head

    def forward_features(self, pixels: torch.Tensor) -> object:
        if isinstance(self._features, Exception):
            raise self._features
        return self._features

    def forward_head(self, features: object, *, pre_logits: bool) -> object:
        if isinstance(self._head, Exception):
            raise self._head
        return self._head


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Odd(ValueError("odd sizes\nand more"), None), "odd cannot take images of 96×96: ValueError: odd sizes$"),
        (Odd(torch.zeros(1, 4), TypeError("no pre_logits")), r"odd has no embedding: .* \(TypeError: no pre_logits\)"),
        (Odd(torch.zeros(1, 4), torch.zeros(1, 4, 4)), r"forward_head gives \(1, 4, 4\), not one vector an image"),
        (Odd(torch.zeros(1, 4), [torch.zeros(1, 4)]), "forward_head gives list, not one vector an image"),
    ],
    ids=["size", "head", "a map", "a list"],
)
def test_a_model_without_an_embedding_is_refused_with_what_it_does(model: torch.nn.Module, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        find_layout(model, "odd", 96, 96)


def test_patches_that_cannot_be_told_from_the_rest_are_refused() -> None:
    several = find_layout(Odd([torch.zeros(1, 4), torch.zeros(1, 8)], torch.zeros(1, 4)), "odd", 96, 96)
    with pytest.raises(UsageError, match="odd gives features of several sizes, not one grid"):
        check_patches(Odd(None, None), "odd", several)
    with_token = Layout(8, (5, 8), prefix=0, class_token=True, channels_last=False, token_grid=None)
    with pytest.raises(UsageError, match="odd has a class token, but timm does not say which"):
        check_patches(Odd(None, None), "odd", with_token)
