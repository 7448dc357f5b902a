"""Requests to encoded images: raw bodies, multipart forms, and OpenAI's JSON. Each is bounded as it arrives."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serve.errors import ApiError, Limit, body_too_large

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from fastapi import Request

    from pipeline.sections import ServeConfig

_DATA_URI = re.compile(r"data:(?P<type>[^,;]*)(?P<parameters>(;[^,;]*)*),", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image, and what the client calls it."""

    name: str
    data: bytes


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """The whole body. Raises ApiError 413 as soon as it is too large, by its declared length or by what arrives."""
    return b"".join([chunk async for chunk in _chunks(request, config)])


async def read_images(request: Request, config: ServeConfig) -> list[Image]:
    """The images of a raw or a multipart body.

    Raises:
        ApiError: 413 too large, 400 too many or malformed, 415 another content type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, config)
    if kind.startswith("image/") or kind == "application/octet-stream":
        data = await read_body(request, config)
        if not data:
            raise ApiError(400, "empty_body", "the body is empty; send an image")
        return [Image("", data)]
    raise ApiError(
        415, "unsupported_media_type", "send an image as the body (Content-Type: image/…), or multipart/form-data"
    )


async def _read_form(request: Request, config: ServeConfig) -> list[Image]:
    parser = MultiPartParser(
        request.headers, _chunks(request, config), max_files=config.max_images, max_fields=config.max_images
    )
    parser.spool_max_size = config.max_body_bytes  # in memory, which the body's bound keeps small; never on disk
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        if str(error).startswith("Too many files"):
            raise too_many_images(config) from None
        raise ApiError(400, "malformed_multipart", "the multipart body cannot be parsed") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    check_count(len(files), config)
    images = [Image(file.filename or "", await file.read()) for file in files]
    await form.close()
    return images


async def _chunks(request: Request, config: ServeConfig) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > config.max_body_bytes:
        raise body_too_large(config.max_body_bytes)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > config.max_body_bytes:
            raise body_too_large(config.max_body_bytes)
        yield chunk


def check_count(images: int, config: ServeConfig) -> None:
    """Raises ApiError 400 when there is no image, or too many."""
    if images == 0:
        raise ApiError(400, "no_images", "the request has no image")
    if images > config.max_images:
        raise too_many_images(config)


def too_many_images(config: ServeConfig) -> ApiError:
    """400: more images than a request may have."""
    return ApiError(
        400,
        "too_many_images",
        f"a request may have {config.max_images} images; send the others in further ones",
        limit=Limit("max_images", config.max_images),
    )


def decode_inputs(inputs: Sequence[str]) -> list[Image]:
    """Data URIs and bare base64 to images.

    Raises:
        ApiError: 400 for a URL, which this server never fetches, and for what is not base64.
    """
    return [Image("", _decode_input(text, f"input[{place}]")) for place, text in enumerate(inputs)]


def _decode_input(text: str, param: str) -> bytes:
    match = _DATA_URI.match(text)
    if match:
        if not match["parameters"].lower().endswith(";base64"):
            raise ApiError(400, "invalid_data_uri", "a data URI must be base64: data:image/jpeg;base64,…", param)
        if match["type"] and not match["type"].lower().startswith(("image/", "application/octet-stream")):
            raise ApiError(400, "invalid_data_uri", "the data URI is of another type than image/…", param)
        text = text[match.end() :]
    elif _URL.match(text.lstrip()):
        raise ApiError(
            400, "url_not_supported", "URLs are not fetched; send the image itself: data:image/jpeg;base64,…", param
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "invalid_base64", "this is neither a data URI nor a base64-encoded image", param) from None
