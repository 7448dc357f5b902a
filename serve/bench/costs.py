"""CPU time by what a process is for, read from /proc: of this process and all that descend from it."""

from __future__ import annotations

import os
from pathlib import Path

ROLES = ("proxy", "replica", "client", "rest of Ray")
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> dict[str, float]:
    """Seconds of CPU so far, of the living processes of each role."""
    parents, cpu = dict[int, int](), dict[int, float]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            parents[int(folder.name)] = int(fields[1])
            cpu[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    seconds = dict.fromkeys(ROLES, 0.0)
    for process in cpu:
        if _descends(process, parents):
            seconds[_role(process)] += cpu[process]
    return seconds


def _descends(process: int, parents: dict[int, int]) -> bool:
    own = os.getpid()
    while process > 1 and process != own:
        process = parents.get(process, 0)
    return process == own


def _role(process: int) -> str:
    if process == os.getpid():
        return "client"
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").lower()
    except OSError:
        command = ""
    if "proxy" in command:  # ray::ProxyActor, haproxy
        return "proxy"
    return "replica" if "ray::servereplica" in command or "serve.bench" in command else "rest of Ray"


def replica_mib() -> float:
    """Resident memory of the living replicas that descend from this process, in MiB."""
    parents, pages = dict[int, int](), dict[int, int]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
            except OSError:
                continue
    own = [process for process in pages if _descends(process, parents) and _role(process) == "replica"]
    return sum(pages[process] for process in own) * os.sysconf("SC_PAGE_SIZE") / 2**20
