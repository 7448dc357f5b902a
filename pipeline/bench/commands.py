"""What a command costs before and beside its work: seconds, CPU seconds, and which slow modules it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from pipeline.errors import RaysightError

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOW = ("torch", "timm", "ray")
"""Modules that take seconds to import."""

_PROGRAM = """
import json, sys
from serve.cli import main
try:
    code = main(sys.argv[2:])
except SystemExit as end:
    code = end.code
sys.stdout.flush()
print("\\n" + json.dumps([code, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]))
"""


def time_command(arguments: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """Runs ``raysight`` with these arguments in a process of its own.

    Returns:
        ``seconds``; ``cpu_seconds`` of it and its children, which other processes on the machine disturb less;
        ``imports``: those of :data:`SLOW` that it imported.

    Raises:
        RaysightError: the command failed; the message has its last words.
    """
    before, start = os.times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(SLOW), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    seconds, after = time.monotonic() - start, os.times()
    code, imports = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else (done.returncode, [])
    if code:
        raise RaysightError(f"raysight {' '.join(arguments)}: exit code {code}\n{done.stderr[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu_seconds": cpu, "imports": imports}
