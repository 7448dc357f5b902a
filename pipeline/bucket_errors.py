"""What obstore's errors mean, of every cloud: one object's fault, the bucket's, or the credentials'."""

from __future__ import annotations

import re

from obstore import exceptions as obstore_errors

from pipeline.errors import CredentialsError, ForbiddenError, NotFoundError, StorageError, UnavailableError

BAD_CREDENTIALS = frozenset(
    {
        # S3 and Google
        "AccountProblem",
        "AuthenticationRequired",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "NotSignedUp",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        # Azure
        "AccountIsDisabled",
        "AuthenticationFailed",
        "InvalidAuthenticationInfo",
        "KeyBasedAuthenticationNotPermitted",
        "NoAuthenticationInformation",
        "PublicAccessNotPermitted",
    }
)
"""Answered with 400, 401, 403 or 409, but of every object alike: no image must be rejected for it."""

_GONE_BUCKET = ("<Code>NoSuchBucket</Code>", "<Code>ContainerNotFound</Code>", "The specified bucket does not exist")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_ANSWER = "Server returned non-2xx status code: "


def gone_bucket(error: Exception) -> bool:
    """Whether the bucket itself is not there: answered with 404, as one object that is gone."""
    return any(text in _answer(error) for text in _GONE_BUCKET)


def translate(error: Exception, where: str, endpoint: str) -> StorageError:
    """The error of this project that says the same.

    Args:
        error: of obstore; an error of this project comes back as it is.
        where: URI of the object or prefix.
        endpoint: of the store, for a person.
    """
    if isinstance(error, StorageError):
        return error
    answer = _answer(error)
    status, code = answer[:3], next(iter(_CODE.findall(answer)), "")
    if gone_bucket(error):
        return UnavailableError(f"{where}: {code or 'NoSuchBucket'} at {endpoint}: the bucket does not exist")
    if code in BAD_CREDENTIALS or status == "401":
        return refused(where, code or "HTTP 401", endpoint)
    if isinstance(error, (obstore_errors.NotFoundError, FileNotFoundError)):
        return NotFoundError(f"{where}: not found")
    if status == "403":
        return ForbiddenError(f"{where}: not allowed with these credentials ({code or 'HTTP 403'})")
    text = str(error).strip() or type(error).__name__
    return UnavailableError(f"{where}: {text.splitlines()[0]}")


def _answer(error: Exception) -> str:
    """What the store answered, from the HTTP status on; empty where it did not. What stands before may be a key."""
    return str(error).partition("\n\nDebug source:")[0].rpartition(_ANSWER)[2] if _ANSWER in str(error) else ""


def refused(where: str, reason: str, endpoint: str) -> CredentialsError:
    """The store knows these credentials not, or no longer."""
    return CredentialsError(f"{where}: {reason} at {endpoint}: it does not take these credentials, or no longer")
