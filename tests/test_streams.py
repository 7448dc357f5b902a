"""Forwards side by side, and how many of them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline.streams import ForwardStreams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MEET_S = 30.0


class Meeting:
    """An extractor whose forward does what it is told."""

    def __init__(self, forward: Callable[[], None]) -> None:
        self._forward = forward

    def forward(self, batch: Sequence[np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        self._forward()
        return {"embedding": np.stack([pixels.reshape(-1)[:2] for pixels in batch])}


def pictures(value: int) -> list[np.ndarray[Any, Any]]:
    return [np.full((1, 1, 3), value, np.uint8)]


def test_as_many_forwards_run_at_a_time_as_there_are_streams() -> None:
    barrier = threading.Barrier(3)
    streams = ForwardStreams(Meeting(lambda: barrier.wait(MEET_S) and None), 3, 1)  # type: ignore[arg-type]
    futures = [streams.submit(pictures(value)) for value in range(3)]
    assert [int(future.result().features["embedding"][0, 0]) for future in futures] == [0, 1, 2]


def test_each_thread_that_will_compute_has_settled() -> None:
    """What is compiled for a thread is not compiled while somebody waits."""
    settled: set[str] = set()

    class Settling(Meeting):
        def settle(self, size: int, most: int) -> int:
            settled.add(threading.current_thread().name)
            return min(size, most)

    used: set[str] = set()
    barrier = threading.Barrier(3)

    def forward() -> None:
        used.add(threading.current_thread().name)
        barrier.wait(MEET_S)

    streams = ForwardStreams(Settling(forward), 3, 1)  # type: ignore[arg-type]
    streams.settle(2)
    for future in [streams.submit(pictures(value)) for value in range(3)]:
        future.result()
    assert used <= settled
    assert len(settled) == 4  # and the one for an image that is alone


def test_one_stream_runs_them_one_after_another() -> None:
    alone = threading.Lock()

    def forward() -> None:
        assert alone.acquire(blocking=False), "two at a time"
        threading.Event().wait(0.01)
        alone.release()

    streams = ForwardStreams(Meeting(forward), 1, 1)  # type: ignore[arg-type]
    for future in [streams.submit(pictures(value)) for value in range(4)]:
        future.result()


def test_a_stream_of_two_holds_half_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((10.0, 13.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    streams = ForwardStreams(Meeting(lambda: None), 2, 1)  # type: ignore[arg-type]
    assert streams.submit(pictures(0)).result().seconds == 1.5


def test_a_batch_that_is_alone_has_the_threads_of_all_streams_and_holds_all_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []
    streams = ForwardStreams(Meeting(lambda: threads.append(torch.get_num_threads())), 2, 1)  # type: ignore[arg-type]
    clock = iter((10.0, 13.0, 20.0, 23.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert streams.submit(pictures(0), alone=True).result().seconds == 3.0
    assert streams.submit(pictures(0)).result().seconds == 1.5
    assert threads == [2, 1]


def test_what_a_forward_raises_reaches_who_asked_for_it() -> None:
    def forward() -> None:
        raise FloatingPointError("no device")

    future = ForwardStreams(Meeting(forward), 1, 1).submit(pictures(0))  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="no device"):
        future.result()


def test_with_a_depth_of_two_a_stream_has_two_batches_in_hand() -> None:
    barrier = threading.Barrier(2)
    streams = ForwardStreams(Meeting(lambda: barrier.wait(MEET_S) and None), 1, 1, depth=2)  # type: ignore[arg-type]
    assert (streams.streams, streams.in_hand) == (1, 2)
    for future in [streams.submit(pictures(value)) for value in range(4)]:
        future.result()


def test_of_two_batches_in_hand_the_second_holds_the_device_from_where_the_first_left_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first_is_in, first_may_go = threading.Event(), threading.Event()

    def forward() -> None:
        if not first_is_in.is_set():
            first_is_in.set()
            assert first_may_go.wait(MEET_S)

    streams = ForwardStreams(Meeting(forward), 1, 1, depth=2)  # type: ignore[arg-type]
    clock = iter((10.0, 11.0, 14.0, 16.0))  # first begins, second begins, second ends, first ends
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    first = streams.submit(pictures(0))
    assert first_is_in.wait(MEET_S)
    second = streams.submit(pictures(1))
    assert second.result().seconds == 3.0
    first_may_go.set()
    assert first.result().seconds == 2.0  # 14 to 16: it had waited for the other
