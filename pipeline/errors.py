"""The errors raysight raises on purpose; each says what was wrong, where, and what to do."""

from __future__ import annotations

from typing import ClassVar


class RaysightError(Exception):
    """Anything that ends a command with a message instead of a stack trace."""

    exit_code: ClassVar[int] = 1


class UsageError(RaysightError):
    """Arguments, configuration or a destination that cannot be worked with as asked (exit code 2)."""

    exit_code: ClassVar[int] = 2


class BadUriError(UsageError):
    """What is named is no URI of an object that can be read."""


class InterruptedJobError(RaysightError):
    """The job was asked to stop before it had begun its work (exit code 4: the same command goes on)."""

    exit_code: ClassVar[int] = 4


class HubError(RaysightError):
    """Pretrained weights cannot be fetched from the model hub."""


class StorageError(RaysightError):
    """A store answered with something that is not about one object alone."""


class NotFoundError(StorageError):
    """The object does not exist (HTTP 404)."""


class ForbiddenError(StorageError):
    """The object may not be read or written with these credentials (HTTP 403)."""


class CredentialsError(StorageError):
    """The store does not take the credentials, or no longer, whatever the object (HTTP 401, an expired token)."""


class UnavailableError(StorageError):
    """The store did not answer in time, or answered 429 or 5xx after all retries."""


class UnsupportedError(StorageError):
    """The store lacks the operation (HTTP 501), for example a conditional put."""


class RejectError(Exception):
    """One image cannot become a row of features; it becomes a row of rejects instead.

    Args:
        stage: ``read``, ``decode`` or ``forward``.
        error: a short, stable name to group by, such as ``NotFound`` or ``Truncated``.
        message: what was wrong, for a person.
    """

    def __init__(self, stage: str, error: str, message: str) -> None:
        super().__init__(stage, error, message)
        self.stage = stage
        self.error = error
        self.message = message


def not_finite() -> RejectError:
    """Of an image whose features are not all numbers."""
    return RejectError("forward", "NotFinite", "the model gives NaN or infinity for it")
