"""What lies at the root of an error that Ray raised, and what is said of it."""

from __future__ import annotations

import logging
from typing import TypeGuard

from pipeline.errors import RaysightError

_RAYS_ADVICE = "\nFailed to "  # Ray Data appends advice on its own settings to every error message
_RAYS_PLEA = "Exception occurred in Ray Data"  # to report the trace that follows as a fault of Ray


def explain(error: BaseException) -> RaysightError:
    """Our own error where one lies below Ray's wrappers, else the last line of what lies at the root."""
    root = _root(error)
    if _is_ours(root):
        return type(root)(str(root).partition(_RAYS_ADVICE)[0])
    lines = [line for line in str(root).strip().splitlines() if line.strip()]
    return RaysightError(f"Ray gave up: {type(root).__name__}: {lines[-1] if lines else ''}; run again to resume")


def leave_ours_to_us() -> None:
    """Keeps Ray Data from printing traces of errors with which the job ends in a line; its log file has them."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.addFilter(_is_for_a_person)


def _is_for_a_person(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (error is not None and _is_ours(_root(error))) and not record.getMessage().startswith(_RAYS_PLEA)


def _is_ours(error: BaseException) -> TypeGuard[RaysightError]:
    return isinstance(error, RaysightError) and type(error).__module__ == RaysightError.__module__


def _root(error: BaseException) -> BaseException:
    """Our own error below Ray's wrappers, else the innermost one."""
    while not _is_ours(error):
        cause = getattr(error, "cause", None)
        below = cause if isinstance(cause, BaseException) else error.__cause__
        if below is None:
            break
        error = below
    return error
