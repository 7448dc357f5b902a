"""The extractor compiled by OpenVINO: the numbers of torch's, from any thread, or a clear refusal."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pipeline.config import ImageLimits, ModelConfig
from pipeline.errors import UsageError
from pipeline.extractor import Extractor, load_extractor
from pipeline.openvino_model import OpenVINOModel, serves
from pipeline.streams import ForwardStreams
from pipeline.tolerance import tolerance

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytest.importorskip("openvino")

MODEL = ModelConfig("test_vit", "random:0", precision="fp32", features=("embedding", "patches", "classes"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain() -> Extractor:
    return load_extractor(MODEL, ImageLimits(), CPU)


@pytest.fixture(scope="module")
def compiled() -> Extractor:
    return load_extractor(replace(MODEL, compile=True), ImageLimits(), CPU)


def pictures(count: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(count).integers(0, 256, (count, 160, 160, 3), np.uint8))


def assert_same(found: dict[str, NDArray[np.generic]], expected: dict[str, NDArray[np.generic]]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name].shape, found[name].dtype) == (values.shape, values.dtype)
        if name != "class_index":
            largest = float(np.abs(values).max())
            np.testing.assert_allclose(
                found[name], values, rtol=0, atol=(1e-3 if name == "patches" else 1e-4) * largest
            )


def test_no_size_of_batch_has_to_be_compiled_beforehand(compiled: Extractor) -> None:
    assert not compiled.compiles


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_numbers_are_those_of_torch_for_any_batch(compiled: Extractor, plain: Extractor, count: int) -> None:
    assert_same(compiled.forward(pictures(count)), plain.forward(pictures(count)))


def test_it_is_openvino_that_computes(compiled: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    def torch_computes(images: torch.Tensor) -> None:
        raise AssertionError(images.shape)

    monkeypatch.setattr(compiled._model, "forward_features", torch_computes)
    assert compiled.forward(pictures(1))["embedding"].shape == (1, 64)


def test_the_fingerprint_is_that_of_the_plain_model(compiled: Extractor, plain: Extractor) -> None:
    assert compiled.fingerprint == plain.fingerprint


def test_what_a_caller_was_given_stays_its_own(compiled: Extractor, plain: Extractor) -> None:
    first = compiled.forward(pictures(1))
    compiled.forward(pictures(2))
    assert_same(first, plain.forward(pictures(1)))


def test_forwards_side_by_side_do_not_mix(compiled: Extractor, plain: Extractor) -> None:
    streams = ForwardStreams(compiled, 2, 1)
    futures = [streams.submit(pictures(count)) for count in (1, 2, 3, 4)]
    futures.append(streams.submit(pictures(5), alone=True))
    for count, future in enumerate(futures, 1):
        assert_same(dict(future.result().features), plain.forward(pictures(count)))


def test_the_thread_that_calls_is_the_one_that_computes(compiled: Extractor) -> None:
    """Else a forward's CPU seconds would be missing in the run's figures."""
    streams = ForwardStreams(compiled, 1, 1)
    streams.submit(pictures(8)).result()
    before = time.process_time()
    forwarded = streams.submit(pictures(64)).result()
    assert forwarded.cpu_seconds > 0.5 * (time.process_time() - before)


def test_threads_compile_at_once(plain: Extractor) -> None:
    fresh, barrier = load_extractor(replace(MODEL, compile=True), ImageLimits(), CPU), Barrier(2)

    def first(_: int) -> dict[str, NDArray[np.generic]]:
        barrier.wait()
        return fresh.forward(pictures(1))

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(first, range(2)):
            assert_same(found, plain.forward(pictures(1)))


def test_a_network_that_openvino_does_not_know_is_refused() -> None:
    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, torch.linalg.svdvals(images)

    with pytest.raises(UsageError, match="--compile: OpenVINO cannot take this model over: "):
        OpenVINOModel(network, torch.nn.Identity(), 8, 8, torch.float32)


def test_bf16_is_as_far_from_fp32_as_bf16_may_be(plain: Extractor) -> None:
    half = load_extractor(replace(MODEL, precision="bf16", compile=True), ImageLimits(), CPU)
    assert half.fingerprint.precision == "bf16"
    found, expected = (each.forward(pictures(4))["embedding"].astype(np.float64) for each in (half, plain))
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) / norms).min() >= tolerance("reference", "bf16").cosine


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float32), ("cpu", torch.float16)])
def test_it_is_for_a_cpu_alone(device: str, dtype: torch.dtype) -> None:
    assert not serves(torch.device(device), dtype)
    assert serves(CPU, torch.float32)
