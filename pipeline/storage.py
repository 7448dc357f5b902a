"""Opens stores by their URLs; everything raysight reads or writes goes through one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.errors import BadUriError, UsageError
from pipeline.local import LocalStore
from pipeline.store import Fetched, ObjectInfo, Readable, Store

if TYPE_CHECKING:
    from pipeline.config import StorageConfig

__all__ = ["Fetched", "ObjectInfo", "Readable", "Store", "open_readable", "open_store", "scheme", "split_uri"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_CLOUDS = ("s3", "gs", "az")
_READABLE = "a local path, s3://, gs://, az:// or http(s)://"


def scheme(url: str) -> str:
    """The scheme of a URL, or an empty string for a path."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else ""


def open_store(url: str, config: StorageConfig) -> Store:
    """The store that ``url`` names, to be written: ``s3://bucket/prefix``, ``file:///folder`` or a local path.

    Raises:
        UsageError: the scheme is not one of these, or the bucket is missing.
    """
    match scheme(url):
        case "s3":
            from pipeline.s3 import S3Store  # only now: boto3 takes a while to import

            return S3Store(url, config)
        case "" | "file":
            return LocalStore(url)
        case other:
            known = " here (images are read from it)" if other in (*_CLOUDS, "http", "https") else ""
            raise UsageError(
                f"{url}: the scheme {other}:// is not supported{known}; use a local path or s3://bucket/prefix"
            )


def open_readable(url: str, config: StorageConfig) -> Readable:
    """The store that ``url`` names, to be read: as :func:`open_store`, also ``gs://``, ``az://`` and ``http(s)://``.

    Raises:
        UsageError: as :func:`open_store`.
    """
    match scheme(url):
        case "gs" | "az":
            from pipeline.cloud import CloudStore

            return CloudStore(url, config)
        case "http" | "https":
            from pipeline.web import WebStore

            return WebStore(config)
        case "s3" | "" | "file":
            return open_store(url, config)
        case other:
            raise UsageError(f"{url}: the scheme {other}:// is not supported; use {_READABLE}")


def split_uri(uri: str) -> tuple[str, str]:
    """URL of the whole store that holds an object (a bucket, the local disk, the web), and the object's URI there.

    Raises:
        BadUriError: it does not name an object.
    """
    match kind := scheme(uri):
        case "s3" | "gs" | "az":
            bucket, _, key = uri[len(f"{kind}://") :].partition("/")
            if not bucket or not key:
                raise BadUriError(f"{uri}: write {kind}://bucket/key")
            return f"{kind}://{bucket}/", f"{kind}://{bucket}/{key}"
        case "http" | "https":
            return "http://", uri
        case "" | "file":
            return "/", uri
        case other:
            raise BadUriError(f"{uri}: the scheme {other}:// is not supported; use {_READABLE}")
