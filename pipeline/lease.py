"""One job at a time on a dataset. Correctness does not rest on it (names are deterministic); it saves work.

The owner writes a new heartbeat every fifth of the time to live. Who wants in watches the object: a beat that changes
means "in use", one that stands still for the time to live means "dead". No two clocks are ever compared. On the
owner's own host the process table answers at once.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipeline import schema
from pipeline.errors import NotFoundError, RaysightError, StorageError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pipeline.storage import Store

_BEATS_PER_TTL = 5
_SETTLE_S = 1.0
"""Without conditional puts two writers can both think they won; the later write is seen after this pause."""


class Lease:
    """A context manager that holds the lease of a dataset.

    Raises (on entry):
        UsageError: another job is at work on the dataset.
    """

    def __init__(
        self, dest: Store, ttl_s: float, say: Callable[[str], None], on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._dest = dest
        self._ttl = ttl_s
        self._say = say
        self._on_lost = on_lost
        self._owner = uuid.uuid4().hex
        self._beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="raysight-lease", daemon=True)

    def __enter__(self) -> Self:
        self._acquire()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if self._owned_by_me():
                self._dest.delete([schema.LEASE])
        except StorageError as failure:
            # Not worth ending a job over, and never in place of the error that ends it.
            self._say(f"the lease could not be given back ({failure}); the next job waits {self._ttl:g} s for it")

    def _acquire(self) -> None:
        current = self._read()
        if current is not None:
            self._wait_for_death(current)
            self._write_over()
            return
        try:
            created = self._dest.put_if_absent(schema.LEASE, self._content())
        except UnsupportedError:
            self._write_over()
            return
        # A PUT whose answer was lost and that was sent again finds its own lease.
        if not created and not self._owned_by_me():
            raise UsageError(self._in_use(self._read() or {}))

    def _write_over(self) -> None:
        self._dest.put(schema.LEASE, self._content())
        time.sleep(_SETTLE_S)
        winner = self._read()
        if winner is None or winner.get("owner") != self._owner:
            raise UsageError(self._in_use(winner or {}))

    def _wait_for_death(self, seen: dict[str, Any]) -> None:
        if _same_host(seen):
            if _alive(seen):
                raise UsageError(self._in_use(seen))
            self._say(f"taking over from a dead job (process {seen.get('pid')} of this machine is gone)")
            return
        self._say(f"{seen.get('host')} holds the lease of {self._dest.root}; waiting {self._ttl:g} s for a heartbeat")
        deadline = time.monotonic() + self._ttl
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._ttl / _BEATS_PER_TTL))
            current = self._read()
            if current is None:
                return  # its owner has just finished
            if current != seen:
                raise UsageError(self._in_use(current))
        self._say(f"no heartbeat for {self._ttl:g} s: taking over from a dead job on {seen.get('host')}")

    def _in_use(self, holder: dict[str, Any]) -> str:
        return (
            f"{self._dest.root} is in use by another job (process {holder.get('pid')} on {holder.get('host')});"
            " wait for it to end, or stop it"
        )

    def _beat(self) -> None:
        while not self._stop.wait(self._ttl / _BEATS_PER_TTL):
            try:
                if not self._owned_by_me():
                    self._say(f"the lease of {self._dest.root} was taken over by another job; stopping")
                    self._on_lost()
                    return
                self._dest.put(schema.LEASE, self._content())
            except RaysightError as error:
                # One missed beat is harmless; the next one may go through.
                self._say(f"the lease could not be renewed just now: {error}")

    def _owned_by_me(self) -> bool:
        current = self._read()
        return current is not None and current.get("owner") == self._owner

    def _read(self) -> dict[str, Any] | None:
        try:
            return {**json.loads(self._dest.get(schema.LEASE))}  # of anything but an object a TypeError
        except NotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{self._dest.uri(schema.LEASE)} is not a lease; delete it if no job is at work"
            ) from error

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps(
            {
                "owner": self._owner,
                "host": socket.gethostname(),
                "boot": _boot_id(),
                "pid": os.getpid(),
                "started": _start_time(os.getpid()),
                "beat": self._beats,
            }
        ).encode()


def _boot_id() -> str:
    """Tells containers and reboots of one host name apart."""
    path = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    boot = path.read_text().strip() if path.exists() else ""
    return f"{boot}/{namespace.readlink()}" if namespace.exists() else boot


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot (proc(5), field 22); None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _same_host(holder: dict[str, Any]) -> bool:
    return bool(_boot_id()) and (holder.get("host"), holder.get("boot")) == (socket.gethostname(), _boot_id())


def _alive(holder: dict[str, Any]) -> bool:
    started = _start_time(int(holder.get("pid", -1)))
    return started is not None and started == holder.get("started")
