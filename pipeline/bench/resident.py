"""The memory of a process."""

from __future__ import annotations

from pathlib import Path


def resident_mib() -> float:
    """Resident memory of this process that is its own (proc(5): resident less shared pages), in MiB."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * 4096 / 2**20
