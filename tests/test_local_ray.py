"""The Ray that a job starts on this machine."""

from __future__ import annotations

import os

import psutil
import pytest

from pipeline.cluster import local_ray

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

IDLE = ("/autoscaler/_private/monitor.py", "/log_monitor.py", "/dashboard/dashboard.py")
NEEDED = ("/raylet/raylet", "/gcs/gcs_server")


def command(process: psutil.Process) -> str:
    """Its command line; one that has ended has none."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def test_processes_that_one_machine_has_no_use_for_are_ended_and_ray_goes_on_without() -> None:
    myself = psutil.Process(os.getpid())
    before = set(myself.children(recursive=True))
    with local_ray(1):
        import ray  # after local_ray, which sets the environment that ray reads once

        of_ray = set(myself.children(recursive=True)) - before
        found = [command(process) for process in of_ray]
        assert [name for name in IDLE if any(name in line for line in found)] == []
        assert all(any(name in line for line in found) for name in NEEDED)
        assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()  # ray takes no builtin
        of_ray |= set(myself.children(recursive=True)) - before
    psutil.wait_procs(of_ray, timeout=60)
    assert [line for line in map(command, of_ray) if line] == []
