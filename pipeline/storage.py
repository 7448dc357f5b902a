"""Opens a folder or a bucket by its URL; everything raysight reads or writes goes through such a store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.local import LocalStore
from pipeline.store import Fetched, ObjectInfo, Store

if TYPE_CHECKING:
    from pipeline.config import StorageConfig

__all__ = ["Fetched", "ObjectInfo", "Store", "open_store", "scheme"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme(url: str) -> str:
    """The scheme of a URL, or an empty string for a path."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else ""


def open_store(url: str, config: StorageConfig) -> Store:
    """The store that ``url`` names: ``s3://bucket/prefix``, ``file:///folder`` or a local path.

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
            raise UsageError(f"{url}: the scheme {other}:// is not supported; use a local path or s3://bucket/prefix")
