"""Ends the jobs of a head whose pod is to go, with SIGTERM to each driver: ``python end_jobs.py URL SECONDS``.

The head's preStop hook, since KubeRay deletes the pods of a cluster without a word to its jobs, and Ray kills drivers
with their head. A driver lets chunks in flight commit and ends with exit code 4; such a job failed, and KubeRay tries
it again, where one that `ray job stop` has stopped counts as done. URL is that of the head's own dashboard, whose token
stands in the environment (``RAY_AUTH_TOKEN``). Asked without Ray's client, which would wait for an answer without end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from typing import Any

_POLL_S = 0.2
_ANSWER_S = 10.0
"""Seconds for one answer of a dashboard that may be busy ending."""

_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


def end_jobs(url: str, seconds: float) -> bool:
    """Sends SIGTERM to the drivers on this node of all running jobs, and waits.

    Returns:
        Whether all of them have ended before ``seconds`` were over; False also where nobody has answered until then.
    """
    deadline = time.monotonic() + seconds
    told: set[int] = set()
    trouble: object = None
    while (left := deadline - time.monotonic()) > 0:
        try:
            running = [job for job in _list_jobs(url, min(_ANSWER_S, left)) if _may_be_here(job)]
        except (OSError, HTTPException, ValueError) as error:
            trouble = error
        else:
            if not running:
                return True
            trouble = f"{len(running)} job(s) have not ended"
            # A driver that has only just been started is seen a little later.
            for pid in {int(job["driver_info"]["pid"]) for job in running if job["driver_info"]} - told:
                told.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        time.sleep(_POLL_S)
    print(f"end_jobs: after {seconds:g} s: {url}: {trouble}", file=sys.stderr)
    return False


def _list_jobs(url: str, seconds: float) -> list[dict[str, Any]]:
    """Raises OSError or HTTPException when nobody answers in full, or not with 200; ValueError when it is no JSON."""
    headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"} if os.environ.get("RAY_AUTH_TOKEN") else {}
    request = urllib.request.Request(f"{url}/api/jobs/", headers=headers)  # noqa: S310  the hook's own URL
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the token is for nobody else
    with direct.open(request, timeout=seconds) as answer:
        jobs: list[dict[str, Any]] = json.load(answer)
        return jobs


def _may_be_here(job: dict[str, Any]) -> bool:
    """Whether it runs, by `ray job submit`, and not on another node, where its process's number is another's here."""
    if job["type"] != "SUBMISSION" or job["status"] in _ENDED:
        return False
    return job["driver_info"] is None or _is_ours(job["driver_info"]["node_ip_address"])


def _is_ours(address: str) -> bool:
    """Whether this node has the address: others cannot be listened on."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(not end_jobs(sys.argv[1], float(sys.argv[2])))
