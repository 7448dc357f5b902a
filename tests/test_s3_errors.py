"""What an error of a store means: of one object, of the bucket, of the credentials, or a passing one."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from obstore import exceptions as obstore_errors

from pipeline.errors import (
    CredentialsError,
    ForbiddenError,
    NotFoundError,
    StorageError,
    UnavailableError,
    UnsupportedError,
)
from pipeline.s3_errors import already_exists, translate

WHERE, ENDPOINT = "s3://bucket/key", "http://store:9000"

CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "ExpiredToken", "InvalidToken")


def answered(code: str) -> ClientError:
    """As boto3 raises it; an answer to HEAD has no body, and its status for a code."""
    return ClientError({"Error": {"Code": code, "Message": "so it says"}}, "GetObject")


def non_2xx(answer: str) -> str:
    """As obstore words it."""
    return f"Client error: Server returned non-2xx status code: {answer}\n\nDebug source:\nand a long story"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((code, NotFoundError) for code in ("NoSuchKey", "404")),
        *((code, ForbiddenError) for code in ("AccessDenied", "403")),
        *((code, CredentialsError) for code in ("401", *CREDENTIALS)),
        *((code, UnsupportedError) for code in ("NotImplemented", "501")),
        *((code, UnavailableError) for code in ("InternalError", "SlowDown", "503", "500", "NoSuchBucket")),
    ],
)
def test_a_code_says_whether_it_is_about_the_object(code: str, kind: type[StorageError]) -> None:
    found = translate(answered(code), WHERE, ENDPOINT)
    assert type(found) is kind
    assert str(found).startswith(f"{WHERE}: ")


@pytest.mark.parametrize(
    ("code", "kind"), [("NoSuchBucket", UnavailableError), *((code, CredentialsError) for code in CREDENTIALS)]
)
@pytest.mark.parametrize("taken_for", [obstore_errors.PermissionDeniedError, obstore_errors.NotFoundError])
def test_what_obstore_takes_for_an_error_of_the_object_may_be_one_of_all_objects(
    taken_for: type[Exception], code: str, kind: type[StorageError]
) -> None:
    error = taken_for(non_2xx(f"403 Forbidden: <Error><Code>{code}</Code></Error>"))
    found = translate(error, WHERE, ENDPOINT)
    assert type(found) is kind
    assert str(found).startswith(f"{WHERE}: {code} at {ENDPOINT}")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (obstore_errors.NotFoundError(non_2xx("404 Not Found: ")), NotFoundError),
        (FileNotFoundError("no"), NotFoundError),
        (obstore_errors.PermissionDeniedError(non_2xx("403 Forbidden: ")), ForbiddenError),
        (obstore_errors.UnauthenticatedError(non_2xx("401 Unauthorized: ")), CredentialsError),
        (NoCredentialsError(), CredentialsError),
        (obstore_errors.GenericError("connection reset\nand a long story"), UnavailableError),
        (EndpointConnectionError(endpoint_url=ENDPOINT), UnavailableError),
        (ValueError(), UnavailableError),
    ],
)
def test_other_errors_are_told_apart_by_their_kind_in_one_line(error: Exception, kind: type[StorageError]) -> None:
    found = translate(error, WHERE, ENDPOINT)
    assert type(found) is kind
    assert str(found).startswith(f"{WHERE}: ")
    assert "\n" not in str(found)


def test_an_error_of_this_project_stays_what_it_is() -> None:
    error = NotFoundError("it is gone")
    assert translate(error, WHERE, ENDPOINT) is error


@pytest.mark.parametrize("code", ["PreconditionFailed", "412", "ConditionalRequestConflict", "409"])
def test_a_conditional_put_that_found_something_is_known_by_its_code(code: str) -> None:
    assert already_exists(answered(code))
    assert not already_exists(answered("AccessDenied"))
    assert not already_exists(ValueError(code))
