"""The Ray that a job starts on this machine."""

from __future__ import annotations

import os

import psutil
import pytest

from pipeline.cluster import local_ray

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

IDLE = ("/autoscaler/_private/monitor.py", "/log_monitor.py", "/dashboard/dashboard.py")
NEEDED = ("/raylet/raylet", "/gcs/gcs_server")


def running() -> list[str]:
    """Command lines of all processes below this one; those that have ended have none."""
    return [" ".join(process.cmdline()) for process in psutil.Process(os.getpid()).children(recursive=True)]


def test_processes_that_one_machine_has_no_use_for_are_ended_and_ray_goes_on_without() -> None:
    with local_ray(1):
        import ray  # after local_ray, which sets the environment that ray reads once

        found = running()
        assert [name for name in IDLE if any(name in line for line in found)] == []
        assert all(any(name in line for line in found) for name in NEEDED)
        assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()  # ray takes no builtin
    assert [line for line in running() if "ray" in line.lower()] == []
