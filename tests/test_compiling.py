"""A compiled extractor: the numbers of the plain one, in few sizes; or a clear refusal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pipeline import compiling, openvino_model
from pipeline.config import ImageLimits, ModelConfig
from pipeline.errors import UsageError
from pipeline.extractor import Extractor, load_extractor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MODEL = ModelConfig("test_vit", "random:0", precision="fp32", features=("embedding", "patches", "classes"))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(openvino_model, "serves", lambda *_: False)  # this is what a GPU gets
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def plain() -> Extractor:
    return load_extractor(MODEL, ImageLimits(), CPU)


def load() -> Extractor:
    return load_extractor(replace(MODEL, compile=True), ImageLimits(), CPU)


def pictures(count: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(count).integers(0, 256, (count, 160, 160, 3), np.uint8))


def assert_same(compiled: Extractor, plain: Extractor, counts: tuple[int, ...]) -> None:
    for count in counts:
        found, expected = compiled.forward(pictures(count)), plain.forward(pictures(count))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert (found[name].shape, found[name].dtype) == (values.shape, values.dtype)
            if name != "class_index":
                np.testing.assert_allclose(found[name], values, rtol=1e-2 if name == "patches" else 1e-4, atol=1e-4)


def test_the_numbers_are_those_of_the_plain_model_at_any_size_of_batch(
    plain: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    compiled = load()
    assert compiled.settle(6, 6) == 6
    assert_same(compiled, plain, (1, 2, 5, 6, 7))
    assert compiled.compiles
    assert not plain.compiles
    assert compiled.fingerprint == plain.fingerprint


def test_as_many_sizes_are_compiled_as_there_are_static_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        sizes.append(next(len(item) for item in inputs if item.dtype == torch.uint8))
        return module

    monkeypatch.setattr(compiling, "BACKEND", backend)
    compiled = load()
    compiled.settle(6, 6)
    for count in range(1, 8):
        compiled.forward(pictures(count))
    assert sizes == [1, 4, 6]  # one graph each: nothing in the model breaks it in two


def test_a_machine_that_cannot_compile_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(compiling, "BACKEND", backend)
    with pytest.raises(UsageError, match=r"--compile: torch cannot compile this model here: .*C compiler"):
        load().settle(2, 2)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductors_numbers_are_those_of_the_plain_model(plain: Extractor) -> None:
    compiled = load()
    compiled.settle(4, 4)
    assert_same(compiled, plain, (1, 3, 4))
