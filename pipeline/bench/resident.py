"""The memory of a process."""

from __future__ import annotations

from pathlib import Path


def resident_mib(process: int | str = "self") -> float:
    """Resident memory of a process that is its own (proc(5): resident less shared pages), in MiB."""
    resident, shared = map(int, Path(f"/proc/{process}/statm").read_text().split()[1:3])
    return (resident - shared) * 4096 / 2**20
