"""Runs commands the way a user does: shows the line, then what it prints."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_BIN = Path(sys.executable).parent


class StepError(Exception):
    """A step of the demo failed; the demo ends with exit code 1."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended, and all it printed."""

    code: int
    output: str


def title(text: str) -> None:
    """A headline between steps."""
    print(f"\n── {text} {'─' * max(3, 100 - len(text))}", flush=True)


def run(*arguments: str, timeout_s: float = 300.0) -> Finished:
    """Runs a program of this virtual environment; its output passes through as it comes.

    Raises:
        StepError: it took longer than ``timeout_s``.
    """
    program = _BIN / arguments[0]
    shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    print(f"$ {shlex.join([str(shown), *arguments[1:]])}", flush=True)
    process = subprocess.Popen(
        [str(program), *arguments[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    echo = threading.Thread(target=_echo, args=(process.stdout, lines), daemon=True)
    echo.start()
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        process.terminate()  # raysight commits what is in flight
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        raise StepError(f"{arguments[0]} {arguments[1]} took longer than {timeout_s:g} s") from error
    echo.join(10)
    return Finished(code, "".join(lines))


def run_or_fail(*arguments: str, timeout_s: float = 300.0) -> Finished:
    """As :func:`run`.

    Raises:
        StepError: also when the command fails.
    """
    finished = run(*arguments, timeout_s=timeout_s)
    if finished.code:
        raise StepError(f"{arguments[0]} {arguments[1]} ended with exit code {finished.code}")
    return finished


def _echo(stream: IO[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line)
        print(f"  {line}", end="", flush=True)
