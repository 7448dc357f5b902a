"""What a job says, as JSON: an object a line, which names the run, and nothing that is not one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.logs import LOGGER, JsonFormatter, LogLines, complain
from pipeline.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What a job tells its user."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def formatted(**changes: Any) -> dict[str, Any]:
    record = logging.makeLogRecord(
        {"name": "pipeline.x", "levelname": "ERROR", "msg": "it %s", "args": ("is",), **changes}
    )
    line = JsonFormatter({"run": "r-1", "dataset": "s3://b/d"}).format(record)
    assert "\n" not in line
    values: dict[str, Any] = json.loads(line)
    return values


def test_a_line_has_time_level_logger_message_run_and_dataset() -> None:
    values = formatted()
    moment = datetime.fromisoformat(values.pop("time"))
    assert moment.utcoffset() == timedelta(0)
    assert values == {
        "level": "ERROR", "logger": "pipeline.x", "message": "it is", "run": "r-1", "dataset": "s3://b/d",
    }  # fmt: skip


def test_an_exception_is_within_the_line() -> None:
    try:
        int("no\nnumber")
    except ValueError:
        values = formatted(exc_info=sys.exc_info())
    assert values["exception"].startswith("Traceback")
    assert values["exception"].endswith("invalid literal for int() with base 10: 'no\\nnumber'")


def test_what_looks_like_a_secret_is_taken_out_of_message_and_exception() -> None:
    url = "https://somebody:word@host/key?sig=abcdef"
    values = formatted(msg=f"cannot read {url}", args=(), exc_info=(OSError, OSError(url), None))
    assert values["message"] == "cannot read https://host/key?***"
    assert values["exception"].endswith("OSError: https://host/key?***")


def test_progress_writes_plain_lines_into_a_log(records: list[logging.LogRecord]) -> None:
    progress = Progress(total=10, done=0, stream=LogLines())
    progress.add(10, 1)
    progress.say("\nand an aside")
    lines = [record.getMessage() for record in records]
    assert lines[0].startswith("10/10 images (100.0 %)")
    assert lines[1:] == ["and an aside"]


def test_without_a_job_that_logs_in_json_an_error_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("no")
    assert capsys.readouterr().err == "raysight: no\n"


def test_a_job_that_fails_says_nothing_that_is_not_json(tmp_path: Path) -> None:
    secret = "a secret of the environment"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY", "AWS"))}
    done = subprocess.run(
        [sys.executable, "-m", "serve.cli", "extract", str(tmp_path / "none"), str(tmp_path / "out")],
        env={**inherited, "RAYSIGHT_JOB_LOG_FORMAT": "json", "AWS_SECRET_ACCESS_KEY": secret},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[-1]["level"] == "ERROR"
    assert "none" in lines[-1]["message"]
    assert {line["dataset"] for line in lines} == {str(tmp_path / "out")}
    assert len({line["run"] for line in lines}) == 1
    assert secret not in done.stderr
