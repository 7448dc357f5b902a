"""What the endpoint refuses, in the shape of OpenAI's errors; nothing of the machine stands in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.errors import RejectError

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}

_MESSAGES = {
    "Empty": "the image has no bytes",
    "NotAnImage": "this is no image that can be decoded: JPEG, PNG, WebP, GIF, BMP and TIFF can",
    "Truncated": "the image ends too early",
    "Corrupt": "the image is damaged and cannot be decoded",
    "NotFinite": "the model gives NaN or infinity for this image",
}
"""By the name of a reject. A decoder's own words are for the log: they may name places and internals."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound that was met: its name in the configuration, and its value."""

    name: str
    value: float


@dataclass(eq=False)
class ApiError(Exception):
    """A request that gets no features.

    Attributes:
        status: HTTP status.
        code: a short, stable name for programs.
        message: what was wrong and what to do, for a person.
        param: the part of the request that it is about.
        limit: the bound that was met.
        headers: of the answer.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    limit: Limit | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": error_object(self.message, kind, self.code, self.param, self.limit)}


def error_object(
    message: str, kind: str, code: str, param: str | None = None, limit: Limit | None = None
) -> dict[str, Any]:
    """OpenAI's error object; a bound that was met stands in it as ``limit: {name, value}``."""
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    if limit is not None:
        error["limit"] = {"name": limit.name, "value": limit.value}
    return error


def body_too_large(max_bytes: int) -> ApiError:
    """413: the body has more bytes than ``max_body_bytes``."""
    return ApiError(
        413,
        "body_too_large",
        f"the body is larger than {max_bytes} bytes; send fewer or smaller images",
        limit=Limit("max_body_bytes", max_bytes),
        headers={"Connection": "close"},
    )


def timeout_error(seconds: float) -> ApiError:
    """504: the request's time, ``request_timeout_s``, is over."""
    return ApiError(
        504,
        "timeout",
        f"the request was not answered within {seconds:g} s",
        limit=Limit("request_timeout_s", seconds),
    )


def device_lost() -> ApiError:
    """503: this process can compute no more, and another one takes its place."""
    return ApiError(503, "device_lost", "this server lost its device; ask again", headers={"Retry-After": "1"})


def reject_error(reject: RejectError, limits: Mapping[str, float]) -> ApiError:
    """Why one image has no features, as an error of status 422.

    Args:
        reject: what the extractor found.
        limits: name → value of the bounds that a reject can be about.
    """
    code = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in reject.error).lstrip("_")
    name = {"TooManyPixels": "max_pixels", "TooManyBytes": "max_bytes"}.get(reject.error)
    if name is not None:
        return ApiError(422, code, reject.message, limit=Limit(name, limits[name]))
    return ApiError(422, code, _MESSAGES.get(reject.error, "the image cannot be processed"))
