"""How large batches are: found by trying, and cut to few sizes for a compiled model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batching import find_batch_size, padded_size, static_sizes

if TYPE_CHECKING:
    from collections.abc import Callable


def device(full: float, most: int = 1 << 20, tried: list[int] | None = None) -> Callable[[int], float]:
    """Seconds of a pass on a device that works on ``full`` images as fast as on one, and has memory for ``most``."""

    def seconds(size: int) -> float:
        if tried is not None:
            tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
        return max(full, size)

    return seconds


@pytest.mark.parametrize(("full", "expected"), [(1, 1), (8, 8), (24, 32), (64, 64)])
def test_the_search_ends_at_the_smallest_batch_that_fills_the_device(full: float, expected: int) -> None:
    assert find_batch_size(device(full), 1024) == expected


def test_the_search_tries_two_sizes_more_than_it_takes_and_no_larger_ones() -> None:
    tried: list[int] = []
    find_batch_size(device(8, tried=tried), 1024)
    assert tried == [1, 2, 4, 8, 16, 32]


def test_one_size_that_fills_the_device_badly_does_not_end_the_search() -> None:
    def seconds(size: int) -> float:
        return 4.0 if size == 4 else max(16, size) / 16

    assert find_batch_size(seconds, 1024) == 16


def test_the_search_ends_where_memory_does() -> None:
    assert find_batch_size(device(64, most=20), 1024) == 16


def test_the_search_keeps_to_its_bound() -> None:
    tried: list[int] = []
    assert find_batch_size(device(1 << 20, tried=tried), 100) == 64
    assert max(tried) == 64


def test_a_device_too_small_for_one_image_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        find_batch_size(device(1, most=0), 64)


def test_an_error_other_than_for_memory_ends_the_search_as_an_error() -> None:
    def seconds(size: int) -> float:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        find_batch_size(seconds, 64)


@given(most=st.integers(1, 512), share=st.floats(0, 1))
def test_a_batch_is_padded_to_less_than_four_times_its_size_within_the_bound(most: int, share: float) -> None:
    count = max(1, round(most * share))
    assert count <= padded_size(count, most) <= min(most, 4 * count - 1)


def test_the_sizes_of_a_compiled_model_are_few() -> None:
    assert static_sizes(64) == (1, 4, 16, 64)
    assert static_sizes(48) == (1, 4, 16, 48)
    assert static_sizes(1) == (1,)
