"""Decoding ahead, in groups, on threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decoding import decode, decode_ahead, group_size
from pipeline.errors import RejectError
from pipeline.prepared import Prepared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.decoding import Item

_PIXELS = np.zeros((1, 1, 3), np.uint8)


def _prepare(data: memoryview) -> Prepared:
    """Its value is the width; odd ones are bad images."""
    number = int.from_bytes(data, "big")
    if number % 2:
        raise RejectError("decode", "Corrupt", str(number))
    return Prepared(_PIXELS, number, 1)


def _names(outcomes: list[Prepared | RejectError]) -> list[str]:
    return [f"reject {item.message}" if isinstance(item, RejectError) else str(item.width) for item in outcomes]


def _item(number: int) -> memoryview:
    return memoryview(number.to_bytes(4, "big"))


@settings(deadline=None)
@given(count=st.integers(0, 60), group=st.integers(1, 9), ahead=st.integers(1, 40), threads=st.integers(1, 3))
def test_outcomes_come_in_the_order_of_the_images_whatever_the_groups(
    count: int, group: int, ahead: int, threads: int
) -> None:
    with ThreadPoolExecutor(threads) as pool:
        groups = list(decode_ahead(map(_item, range(count)), _prepare, pool, ahead=ahead, group=group))

    assert [len(decoded.outcomes) for decoded in groups[:-1]] == [group] * (len(groups) - 1)
    names = [name for decoded in groups for name in _names(decoded.outcomes)]
    assert names == [f"reject {number}" if number % 2 else str(number) for number in range(count)]


@pytest.mark.parametrize(("group", "ahead"), [(1, 4), (3, 4), (8, 66)])
def test_no_more_images_are_decoded_ahead_than_the_bound_and_a_group(group: int, ahead: int) -> None:
    taken = 0

    def items() -> Iterator[Item]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield _item(number)

    with ThreadPoolExecutor(2) as pool:
        for given_out, _ in enumerate(decode_ahead(items(), _prepare, pool, ahead=ahead, group=group)):
            assert taken - given_out * group <= ahead + group


def test_what_is_decoded_already_or_could_not_be_read_passes_through() -> None:
    ready, unread = Prepared(_PIXELS, 7, 7), RejectError("read", "NotFound", "gone")

    assert decode([ready, unread, _item(4)], _prepare).outcomes == [ready, unread, Prepared(_PIXELS, 4, 1)]


def test_whatever_else_decoding_raises_ends_the_chunk() -> None:
    def broken(data: memoryview) -> Prepared:
        raise MemoryError

    with ThreadPoolExecutor(1) as pool, pytest.raises(MemoryError):
        list(decode_ahead(iter([_item(0)]), broken, pool, ahead=4, group=2))


def test_two_groups_are_decoded_at_once() -> None:
    both = threading.Barrier(2)

    def prepare(data: memoryview) -> Prepared:
        both.wait(timeout=60)  # raises where the other group does not come
        return _prepare(data)

    with ThreadPoolExecutor(2) as pool:
        items = map(_item, (0, 2))
        assert len(list(decode_ahead(items, prepare, pool, ahead=2, group=1))) == 2


@pytest.mark.parametrize(("rows", "threads"), [(24, 8), (24, 2), (16, 8), (3, 8), (1024, 16)])
def test_all_threads_have_images_of_a_chunk_of_few_large_ones(rows: int, threads: int) -> None:
    assert -(-rows // group_size(128, rows, threads)) >= min(rows, 2 * threads)


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (2, 1), (64, 8), (128, 16)])
def test_threads_take_an_eighth_of_a_batch_of_a_chunk_of_many_small_ones(batch: int, size: int) -> None:
    assert group_size(batch, 1024, 8) == size
