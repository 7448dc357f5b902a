"""What the errors of boto3 and obstore mean."""

from __future__ import annotations

from botocore.exceptions import ClientError, NoCredentialsError

from pipeline import bucket_errors
from pipeline.errors import (
    CredentialsError,
    ForbiddenError,
    NotFoundError,
    StorageError,
    UnavailableError,
    UnsupportedError,
)

GONE_BUCKET = "NoSuchBucket"

_GONE = {"NoSuchKey", "404", "NotFound"}
_FORBIDDEN = {"AccessDenied", "403", "Forbidden"}
_UNAUTHORIZED = {"401", "Unauthorized"}
_EXISTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_UNSUPPORTED = {"NotImplemented", "501"}


def code(error: ClientError) -> str:
    """The error code of S3, or the HTTP status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def already_exists(error: Exception) -> bool:
    """Whether a conditional PUT found an object in its place, or another than it was meant for."""
    return isinstance(error, ClientError) and code(error) in _EXISTS


def translate(error: Exception, where: str, endpoint: str) -> StorageError:
    """The error of this project that says the same.

    Args:
        error: of boto3, botocore or obstore; an error of this project comes back as it is.
        where: URI of the object or prefix.
        endpoint: URL of the store.
    """
    if isinstance(error, StorageError):
        return error
    if isinstance(error, ClientError):
        return _translate_answer(error, where, endpoint)
    if isinstance(error, NoCredentialsError):
        return CredentialsError(f"{where}: no credentials found; set AWS_ACCESS_KEY_ID or a profile")
    return bucket_errors.translate(error, where, endpoint)


def _translate_answer(error: ClientError, where: str, endpoint: str) -> StorageError:
    name, reason = code(error), error.response.get("Error", {}).get("Message", "")
    if name == GONE_BUCKET:
        return UnavailableError(f"{where}: {name} at {endpoint} ({reason})")
    if name in bucket_errors.BAD_CREDENTIALS or name in _UNAUTHORIZED:
        return bucket_errors.refused(where, name, endpoint)
    if name in _GONE:
        return NotFoundError(f"{where}: not found")
    if name in _FORBIDDEN:
        return ForbiddenError(f"{where}: not allowed with these credentials ({name}: {reason})")
    if name in _UNSUPPORTED:
        return UnsupportedError(f"{where}: the store lacks this operation ({reason})")
    return UnavailableError(f"{where}: {name}: {reason}")
