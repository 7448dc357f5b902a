"""What Ray prints of an error with which a job ends. What the job says of it is in tests/test_dataflow.py."""

from __future__ import annotations

import io
import logging

import pytest

from pipeline.errors import StorageError
from pipeline.rayerrors import leave_ours_to_us


class WrapperError(Exception):
    """As Ray's, which keeps what a task raised as its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"a task raised {cause!r}")
        self.cause = cause


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What Ray Data's console shows."""
    stream = io.StringIO()
    monkeypatch.setattr(logging.getLogger("ray.data"), "handlers", [logging.StreamHandler(stream)])
    leave_ours_to_us()
    return stream


def test_errors_of_ours_are_left_to_the_job_which_ends_with_them(printed: io.StringIO) -> None:
    log = logging.getLogger("ray.data.somewhere.below")
    log.error("An exception was raised from a task.", exc_info=WrapperError(StorageError("/dest: No space left")))
    log.error("Exception occurred in Ray Data or Ray Core internal code. If you continue to see this error, …")
    assert printed.getvalue() == ""


def test_what_was_not_foreseen_is_printed_with_its_trace(printed: io.StringIO) -> None:
    log = logging.getLogger("ray.data.somewhere.below")
    log.error("An exception was raised from a task.", exc_info=WrapperError(ValueError("not foreseen")))
    log.error("a node is gone")
    assert "WrapperError: a task raised ValueError('not foreseen')" in printed.getvalue()
    assert printed.getvalue().endswith("a node is gone\n")
