"""A Prometheus that scrapes one port, where the machine has one (Debian's package of that name)."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deployed import fetch, free_ports, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: ray
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """Answers queries."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._since = time.time()

    def values(self, query: str) -> list[list[float]]:
        """The series of a query, a number a second from the start until now; none where it does not answer in time."""
        asked = {"query": query, "start": self._since, "end": time.time(), "step": 1}
        status, body = fetch(f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(asked)}", {"RAY_AUTH_TOKEN": ""})
        if status in (0, 503):
            return []  # who waits for numbers asks again, and says which are missing
        assert status == 200, f"{query}: {status} {body!r}"
        answer = json.loads(body)
        return [[float(value) for _, value in series["values"]] for series in answer["data"]["result"]]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus | None]:
    """One that scrapes ``target``, a host and port, every second; None where there is no such program."""
    program = shutil.which("prometheus")
    if program is None:
        yield None
        return
    (port,) = free_ports(1)
    (folder / "prometheus.yaml").write_text(_CONFIG.format(target=target))
    command = [
        program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/prometheus",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: fetch(f"{url}/-/ready", {"RAY_AUTH_TOKEN": ""})[0] == 200, "Prometheus is ready")
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait()
