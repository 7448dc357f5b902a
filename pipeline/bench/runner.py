"""One measurement, one process: no measurement inherits another's Ray, threads, memory or page faults."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RaysightError

if TYPE_CHECKING:
    from collections.abc import Mapping

_GRACE_S = 60.0
_TAIL = 2000


def measure(
    where: str, arguments: Mapping[str, Any], *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Calls a function of this package in a fresh process.

    Args:
        where: ``module:function``, the module below ``pipeline.bench`` or with its whole dotted name; takes keyword
            arguments and returns a dict, all plain JSON.
        arguments: its keyword arguments.
        timeout_s: seconds after which the process is asked to end, and then ended.
        environment: added to this process's own.

    Raises:
        RaysightError: the function failed, or took too long; the message has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="raysight-bench-") as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log.txt"
        command = [sys.executable, "-m", "pipeline.bench.runner", where, json.dumps(arguments), str(answer)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
            )
            try:
                code: int | str = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                code = f"none in {timeout_s:g} s"
            finally:
                _end(process)
        if code != 0:
            raise RaysightError(f"bench {where}: exit code {code}\n{log.read_text(errors='replace')[-_TAIL:]}")
        result: dict[str, Any] = json.loads(answer.read_text())
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    """Lets the process stop its Ray first."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _main(where: str, arguments: str, answer: str) -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    module, _, name = where.partition(":")
    whole = module if "." in module else f"pipeline.bench.{module}"
    result = getattr(importlib.import_module(whole), name)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
