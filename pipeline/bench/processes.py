"""The memory of a job's processes, by what each is doing."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pipeline.bench.resident import resident_mib

if TYPE_CHECKING:
    from types import TracebackType

_SAMPLE_S = 0.05
_ROLES = {"ExtractActor": "actor", "finish_shard": "seal", "Chunks": "read"}
"""Ray names a worker after what it runs."""


class PeakMemory:
    """Samples this process and all below it while the block runs.

    Attributes:
        peaks: ``driver``, ``actor``, ``read`` or ``seal`` → the most that one such process had to itself, in MiB.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, float] = defaultdict(float)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._note("driver", os.getpid())
            for process in _below(os.getpid()):
                try:
                    title = Path(f"/proc/{process}/cmdline").read_text()
                    role = next(
                        (role for part, role in _ROLES.items() if title.startswith("ray::") and part in title), ""
                    )
                    if role:
                        self._note(role, process)
                except (OSError, ValueError):  # it has ended
                    continue

    def _note(self, role: str, process: int) -> None:
        self.peaks[role] = max(self.peaks[role], resident_mib(process))


def _below(top: int) -> list[int]:
    """Processes that descend from this one."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                parent = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(entry.name))
    found = list(children[top])
    for process in found:
        found.extend(children[process])
    return found
