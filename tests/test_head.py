"""Linear classifiers from files: which are taken, and for what the others are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UsageError
from pipeline.head import class_names, load_head
from pipeline.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = Layout(8, (1 + 4, 8), prefix=1, class_token=True, channels_last=False, token_grid=(2, 2))
"""A class token and four patches, 8 wide."""

MAP = Layout(8, (8, 2, 2), prefix=0, class_token=False, channels_last=False, token_grid=None)


def saved(tmp_path: Path, **tensors: torch.Tensor) -> Path:
    path = tmp_path / "head.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("name", ["weight", "head.weight", "module.linear.weight"])
def test_a_matrix_of_any_name_classifies_and_without_a_bias_it_adds_nothing(name: str, tmp_path: Path) -> None:
    weight, embedding = torch.randn(3, 8), torch.randn(2, 8)
    head = load_head(saved(tmp_path, **{name: weight}), "vit", MAP)
    torch.testing.assert_close(head(torch.randn(2, 8, 2, 2), embedding), embedding @ weight.T)


def test_a_matrix_twice_as_wide_takes_the_class_token_and_the_mean_of_the_patches(tmp_path: Path) -> None:
    weight, bias, features = torch.randn(3, 16), torch.randn(3), torch.randn(2, 5, 8)
    head = load_head(saved(tmp_path, weight=weight, bias=bias), "vit", TOKENS)
    expected = features[:, 0] @ weight[:, :8].T + features[:, 1:].mean(1) @ weight[:, 8:].T + bias
    torch.testing.assert_close(head(features, torch.randn(2, 8)), expected)


@pytest.mark.parametrize(
    ("shapes", "layout", "complaint"),
    [
        ({"weight": (3, 8), "other.weight": (3, 8)}, TOKENS, r"is not linear: it should hold a weight .* not other"),
        ({"weight": (3, 8), "scale": (3,)}, TOKENS, r"is not linear: .* scale \(3,\)"),
        ({"weight": (3, 8, 1, 1)}, TOKENS, r"is not linear: .* weight \(3, 8, 1, 1\)"),
        ({"weight": (3, 8), "bias": (4,)}, TOKENS, r"the bias has shape \(4,\) for 3 classes"),
        ({"weight": (3, 9)}, TOKENS, r"takes 9 numbers, vit gives 8 numbers \(the embedding\), or 16 \(class token"),
        ({"weight": (3, 16)}, MAP, r"takes 16 numbers, vit gives 8 numbers \(the embedding\)$"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    shapes: dict[str, tuple[int, ...]], layout: Layout, complaint: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, **{name: torch.zeros(shape) for name, shape in shapes.items()})
    with pytest.raises(UsageError, match=complaint) as refusal:
        load_head(path, "vit", layout)
    assert str(refusal.value).startswith(f"--head {path}")


def test_a_thousand_classes_are_imagenets_and_of_others_nobody_knows_the_names() -> None:
    names = class_names(1000)
    assert names is not None
    assert (len(names), names[0].split(",")[0], names[999].split(",")[0]) == (1000, "tench", "toilet tissue")
    assert class_names(7) is None
