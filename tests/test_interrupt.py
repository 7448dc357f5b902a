"""What the signals do that ask a job to end."""

from __future__ import annotations

import signal
import threading

import pytest

from pipeline.interrupt import Interruptible

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)


@BOTH
def test_the_first_signal_is_a_request_and_the_second_an_end(number: signal.Signals) -> None:
    stop, said = threading.Event(), list[str]()
    with Interruptible(stop, said.append):
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert said == [f"\n{number.name}: finishing what is in flight (once more to stop at once)"]


@BOTH
def test_afterwards_signals_do_what_they_did_before_also_when_the_block_fails(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def fail() -> None:
        with Interruptible(threading.Event(), print):
            assert signal.getsignal(number) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert signal.getsignal(number) == before
