"""Ends the jobs of a head whose pod is to go, with SIGTERM to each driver: ``python end_jobs.py URL SECONDS``.

The head's preStop hook, since KubeRay deletes the pods of a cluster without a word to its jobs, and Ray kills drivers
with their head. A driver lets chunks in flight commit and ends with exit code 4; such a job failed, and KubeRay tries
it again, where one that `ray job stop` has stopped counts as done. URL is that of the head's own dashboard, whose token
stands in the environment.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

from ray.job_submission import JobDetails, JobSubmissionClient, JobType

_POLL_S = 0.2


def end_jobs(url: str, seconds: float) -> bool:
    """Sends SIGTERM to the drivers of all running jobs, and waits.

    Returns:
        Whether all of them have ended before ``seconds`` were over.
    """
    deadline = time.monotonic() + seconds
    client = JobSubmissionClient(url)
    told: set[str] = set()
    while running := [job for job in client.list_jobs() if _is_here(job)]:
        if time.monotonic() > deadline:
            return False
        for job in running:
            # A driver that has only just been started is seen a little later.
            if job.driver_info is not None and job.driver_info.pid not in told:
                told.add(job.driver_info.pid)
                with suppress(ProcessLookupError):
                    os.kill(int(job.driver_info.pid), signal.SIGTERM)
        time.sleep(_POLL_S)
    return True


def _is_here(job: JobDetails) -> bool:
    """Whether it runs, and by `ray job submit`, which starts drivers on the head unless it is told otherwise."""
    return job.type is JobType.SUBMISSION and not job.status.is_terminal()


if __name__ == "__main__":
    sys.exit(not end_jobs(sys.argv[1], float(sys.argv[2])))
