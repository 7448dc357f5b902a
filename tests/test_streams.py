"""Forwards side by side, and how many of them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

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


def test_what_a_forward_raises_reaches_who_asked_for_it() -> None:
    def forward() -> None:
        raise FloatingPointError("no device")

    future = ForwardStreams(Meeting(forward), 1, 1).submit(pictures(0))  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="no device"):
        future.result()
