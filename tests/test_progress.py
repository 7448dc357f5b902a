"""What a person sees of a running job."""

from __future__ import annotations

import io
import re

import pytest

from pipeline import progress as module
from pipeline.progress import Progress


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_before_the_first_chunk_it_says_what_is_done_and_how_long_it_has_waited(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress(total=1000, done=250, stream=log)
    clock.now += 42
    progress.tick()
    assert log.getvalue() == "250/1,000 images (25.0 %)  waiting for the first chunk, 42 s\n"


def test_rate_and_eta_count_from_the_first_chunk_on(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress(total=1000, done=0, stream=log)
    clock.now += 60  # Ray starts, the model loads
    progress.add(100, 0)
    clock.now += 20
    progress.add(400, 3)
    assert progress.images_per_second == pytest.approx(20)
    assert log.getvalue().splitlines()[-1] == "500/1,000 images (50.0 %)  20.0 images/s  ETA 0:25  3 rejects"


def test_a_single_chunk_is_measured_over_the_whole_time(clock: Clock) -> None:
    progress = Progress(total=60, done=0, stream=io.StringIO())
    clock.now += 30
    progress.add(60, 0)
    assert progress.images_per_second == pytest.approx(2)


def test_the_last_line_says_how_long_it_took(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress(total=100, done=0, stream=log)
    clock.now += 10
    progress.add(50, 0)
    clock.now += 3690
    progress.add(50, 0)
    progress.finish()
    assert "100/100 images (100.0 %)" in log.getvalue().splitlines()[-1]
    assert "in 1:01:40" in log.getvalue().splitlines()[-1]


def test_a_log_gets_a_line_every_ten_seconds_however_often_it_is_asked(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress(total=100, done=0, stream=log)
    for _ in range(300):
        clock.now += 0.1
        progress.tick()
    assert 3 <= len(log.getvalue().splitlines()) <= 4


def test_a_terminal_gets_one_line_that_renews_itself_and_covers_what_stood_there(clock: Clock) -> None:
    terminal = Terminal()
    progress = Progress(total=100, done=0, stream=terminal)
    clock.now += 1
    progress.tick()
    clock.now += 1
    progress.add(50, 0)
    shown = [line for line in terminal.getvalue().split("\r") if line]
    assert "\n" not in terminal.getvalue()
    assert re.match(r"0/100 images .* waiting for the first chunk, 1 s$", shown[0])
    assert shown[1].startswith("50/100 images")
    assert len(shown[1]) >= len(shown[0])


def test_a_message_on_a_terminal_stands_on_a_line_of_its_own(clock: Clock) -> None:
    terminal = Terminal()
    progress = Progress(total=100, done=0, stream=terminal)
    clock.now += 1
    progress.tick()
    progress.say("no result for 60 s")
    assert terminal.getvalue().endswith("\rno result for 60 s\n")
