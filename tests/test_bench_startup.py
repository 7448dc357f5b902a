"""``raysight bench startup``: commands that really run, and what they import."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.bench.commands import time_command
from pipeline.bench.suite import Bench
from pipeline.bench.suites.startup import time_commands
from pipeline.errors import RaysightError

if TYPE_CHECKING:
    from pathlib import Path


def test_each_command_has_its_time_and_what_it_imports(tmp_path: Path) -> None:
    lines: list[str] = []
    answer = time_commands(Bench(tmp_path, say=lines.append), {"help": ("--help",)}, str(tmp_path / "out"), rounds=2)
    first, second = answer["results"]["help"]
    assert first["imports"] == second["imports"] == []
    assert min(first["seconds"], first["cpu_seconds"]) > 0
    assert "| help " in lines[-1]
    assert "2 rounds: median (range)" in lines[-2]


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RaysightError, match=r"exit code 2\n.*holds no raysight dataset"):
        time_command(("verify", str(tmp_path)), 200)
