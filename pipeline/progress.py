"""How a job tells a person how it is getting on: one line that renews itself on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_TERMINAL_S = 0.5
_LOG_S = 10.0


class Progress:
    """Counts images and prints; the driver's loop calls it."""

    def __init__(self, total: int = 0, done: int = 0, stream: TextIO = sys.stderr) -> None:
        self._total = total
        self._skipped = done
        self._stream = stream
        self._live = stream.isatty()
        self._width = 0
        self._start = self._first = self._last_result = time.monotonic()
        self._printed = 0.0
        self._warm_rows = 0
        self.rows = 0
        self.rejects = 0

    def expect(self, total: int, done: int) -> None:
        """There are so many images, of which so many are done; called again when a listing changes that."""
        self._total = total
        self._skipped = done - self.rows

    def add(self, rows: int, rejects: int) -> None:
        """Notes a committed chunk."""
        self._last_result = time.monotonic()
        if self.rows == 0:
            self._first, self._warm_rows = self._last_result, rows
        self.rows += rows
        self.rejects += rejects
        self.tick()

    def tick(self) -> None:
        """Prints when it is time to."""
        now = time.monotonic()
        if now - self._printed >= (_TERMINAL_S if self._live else _LOG_S):
            self._printed = now
            self._show(self._line())

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self._clear()
        print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        """Leaves the last state on the screen."""
        self.say(self._line())

    @property
    def idle_s(self) -> float:
        """Seconds since the last result."""
        return time.monotonic() - self._last_result

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def images_per_second(self) -> float:
        """From the first result on, when there is enough to tell; else over the whole time."""
        now = time.monotonic()
        warm = self.rows - self._warm_rows
        if warm > 0 and now > self._first:
            return warm / (now - self._first)
        return self.rows / max(now - self._start, 1e-9)

    def _line(self) -> str:
        done = self._skipped + self.rows
        share = 100 * done / self._total if self._total else 100.0
        if not self.rows:
            return (
                f"{done:,}/{self._total:,} images ({share:.1f} %)  waiting for the first chunk, {self.elapsed_s:.0f} s"
            )
        rate = self.images_per_second
        left = f"ETA {_clock((self._total - done) / rate)}" if done < self._total else f"in {_clock(self.elapsed_s)}"
        return (
            f"{done:,}/{self._total:,} images ({share:.1f} %)  {rate:,.1f} images/s  {left}  {self.rejects:,} rejects"
        )

    def _show(self, line: str) -> None:
        if not self._live:
            print(line, file=self._stream, flush=True)
            return
        padding = " " * max(0, self._width - len(line))
        self._width = len(line)
        self._stream.write(f"\r{line}{padding}")
        self._stream.flush()

    def _clear(self) -> None:
        if self._live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
