"""Passes through a device, on the CPU: the same code as on a GPU, with a computation that can be told to fail."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline.device import Passes

if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU = torch.device("cpu")
SHAPE = (4, 5, 3)


class Model:
    """Sums each image up, exactly; notes the sizes of what it is given, and has memory for ``most`` images."""

    def __init__(self, most: int = 1000, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        self.most, self.error = most, error
        self.sizes: list[int] = []

    def __call__(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.sizes.append(len(pixels))
        if len(pixels) > self.most:
            raise self.error("CUDA error: out of memory")
        sums = pixels.flatten(1).sum(dim=1, dtype=torch.float64)
        return {"sum": sums, "pair": torch.stack([sums, -sums], dim=1)}


def images(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8))


def assert_right(found: dict[str, NDArray[Any]], batch: list[NDArray[np.uint8]]) -> None:
    expected = np.array([int(image.sum()) for image in batch], np.float64)
    np.testing.assert_array_equal(found["sum"], expected)
    np.testing.assert_array_equal(found["pair"], np.stack([expected, -expected], axis=1))


def test_a_batch_goes_through_in_one_pass() -> None:
    model = Model()
    assert_right(Passes(model, CPU).run(images(7)), images(7))
    assert model.sizes == [7]


def test_what_one_batch_gave_stays_when_the_next_one_goes_through() -> None:
    passes = Passes(lambda pixels: {"pixels": pixels.clone()}, CPU)
    first, second = images(3, seed=1), images(2, seed=2)
    found = passes.run(first)["pixels"]
    passes.run(second)
    np.testing.assert_array_equal(found, np.stack(first))


def test_batches_of_many_sizes_and_shapes_follow_one_another() -> None:
    passes = Passes(lambda pixels: {"pixels": pixels.clone()}, CPU)
    for count, side in ((2, 4), (5, 4), (1, 4), (3, 6), (4, 2)):
        batch = [np.full((side, side, 3), number, np.uint8) for number in range(count)]
        np.testing.assert_array_equal(passes.run(batch)["pixels"], np.stack(batch))


def test_threads_that_meet_in_a_pass_each_get_their_own_rows() -> None:
    barrier = threading.Barrier(2, timeout=60)

    def meet(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        barrier.wait()  # both have staged their pixels by now, and neither has taken its outputs
        return Model()(pixels)

    passes, batches = Passes(meet, CPU), [images(3, seed) for seed in range(8)]
    with ThreadPoolExecutor(2) as pool:
        for found, batch in zip(pool.map(passes.run, batches), batches, strict=True):
            assert_right(found, batch)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_batch_too_large_for_the_memory_is_halved_until_it_fits_with_the_same_result(error: Any) -> None:
    model = Model(most=3, error=error)
    assert_right(Passes(model, CPU).run(images(10)), images(10))
    assert model.sizes == [10, 5, 3, 3, 3, 1]


def test_batches_after_one_that_was_too_large_begin_with_the_size_that_fitted() -> None:
    model = Model(most=3)
    passes = Passes(model, CPU)
    passes.run(images(6))
    model.sizes.clear()
    assert_right(passes.run(images(6)), images(6))
    assert model.sizes == [3, 3]
    passes.check()  # the device is fine


def test_an_image_too_large_for_the_memory_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Passes(Model(most=0), CPU).run(images(4))


def test_a_compiled_model_sees_few_sizes_and_the_rows_are_those_of_the_batch() -> None:
    eager, compiled = Model(), Model()
    passes = Passes(eager, CPU, compiled)
    assert passes.settle(20, 128, SHAPE) == 20
    assert compiled.sizes == [1, 4, 16, 20]  # each once before the work begins
    for count in range(1, 45):
        assert_right(passes.run(images(count)), images(count))
    assert set(compiled.sizes) == {1, 4, 16, 20}
    assert eager.sizes == []


def test_a_compiled_model_survives_another_threads_lack_of_memory_at_any_moment() -> None:
    model = Model()
    passes = Passes(model, CPU, model)
    passes.settle(16, 16, SHAPE)

    class Meanwhile(list[Any]):
        """Between a batch's cut and its pass, another batch finds too little memory."""

        def __getitem__(self, index: Any) -> Any:
            found, model.most = super().__getitem__(index), 5
            passes.run(images(16))
            return found

    assert_right(passes.run(Meanwhile(images(16))), images(16))


def test_the_batch_size_is_found_without_the_compiled_model_within_memory_and_bound() -> None:
    eager, compiled = Model(most=4), Model()
    found = Passes(eager, CPU, compiled).settle(None, 16, SHAPE)
    assert found in (1, 2, 4)
    assert max(eager.sizes) <= 8
    assert max(compiled.sizes) == found
    bounded = Model()
    assert Passes(bounded, CPU).settle(None, 2, SHAPE) <= 2
    assert max(bounded.sizes) <= 2


def test_a_size_that_was_asked_for_and_does_not_fit_is_settled_smaller() -> None:
    assert Passes(Model(most=5), CPU).settle(16, 128, SHAPE) == 4


def test_a_device_that_was_lost_stays_lost() -> None:
    def fail(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    passes = Passes(fail, CPU)
    passes.check()
    with pytest.raises(torch.AcceleratorError):
        passes.run(images(2))
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        passes.check()


def test_an_error_of_one_batch_alone_leaves_the_device_sound() -> None:
    def fail(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")

    passes = Passes(fail, CPU)
    with pytest.raises(RuntimeError, match="mat1"):
        passes.run(images(2))
    passes.check()
