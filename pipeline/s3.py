"""A bucket as a store. obstore moves the bytes; boto3 brings credentials, listings and conditional puts.

obstore's GETs cost a tenth of boto3's CPU time; boto3 lists every key a bucket can hold (obstore refuses whole pages
over a key such as ``a//b``) and tells 501 from a passing failure.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import obstore
from botocore import UNSIGNED
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from obstore import exceptions as obstore_errors
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store as ObstoreS3

from pipeline.errors import (
    ForbiddenError,
    NotFoundError,
    RejectError,
    StorageError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from pipeline.storage import Fetched, ObjectInfo, read_judgement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.config import StorageConfig

_FORBIDDEN = (obstore_errors.PermissionDeniedError, obstore_errors.UnauthenticatedError)
_GONE_CODES = {"NoSuchKey", "404", "NotFound"}
_FORBIDDEN_CODES = {"AccessDenied", "403", "Forbidden", "401", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_EXISTS_CODES = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_UNSUPPORTED_CODES = {"NotImplemented", "501"}
_DELETE_BATCH = 1000  # the most keys one DeleteObjects request takes


class S3Store:
    """Objects below ``s3://bucket/prefix/``; the endpoint and credentials are those of boto3's chain."""

    def __init__(self, url: str, config: StorageConfig) -> None:
        bucket, _, prefix = url[len("s3://") :].partition("/")
        if not bucket:
            raise UsageError(f"{url}: the bucket is missing; write s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        self._in_flight = config.max_in_flight
        session = boto3.session.Session()
        unsigned = config.anonymous or session.get_credentials() is None
        settings: dict[str, Any] = {"signature_version": UNSIGNED} if unsigned else {}
        self._client = session.client(
            "s3",
            region_name=session.region_name or "us-east-1",
            config=BotoConfig(
                connect_timeout=config.connect_timeout_s,
                read_timeout=config.timeout_s,
                retries={"mode": "standard", "total_max_attempts": config.max_retries + 1},
                # Stores other than AWS often refuse the newer checksum trailers.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                **settings,
            ),
        )
        self._data = self._open_obstore(session, config, unsigned=unsigned)

    def _open_obstore(self, session: boto3.session.Session, config: StorageConfig, *, unsigned: bool) -> ObstoreS3:
        endpoint = self._client.meta.endpoint_url
        options: dict[str, Any] = {"region": self._client.meta.region_name}
        if not (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
            options["endpoint"] = endpoint
        if unsigned:
            options["skip_signature"] = True
        else:
            options["credential_provider"] = Boto3CredentialProvider(session)
        return ObstoreS3(
            self._bucket,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=config.connect_timeout_s),
                "timeout": timedelta(seconds=config.timeout_s),
            },
            retry_config={
                "max_retries": config.max_retries,
                "retry_timeout": timedelta(seconds=config.retry_timeout_s),
            },
            **options,
        )

    @property
    def root(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        try:
            for page in pages:
                for item in page.get("Contents", []):
                    key = item["Key"]
                    yield ObjectInfo(key[len(self._prefix) :], item["Size"], item["ETag"].strip('"'))
        except (ClientError, BotoCoreError) as error:
            raise self._translate(error, self.root + prefix) from error

    def get(self, key: str) -> bytes:
        if not _obstore_can_name(self._prefix + key):
            return self._get_with_boto3(key).data
        try:
            return bytes(obstore.get(self._data, self._prefix + key).bytes())
        except Exception as error:
            raise self._translate(error, self.uri(key)) from error

    def _get_with_boto3(self, key: str, max_bytes: int | None = None) -> Fetched:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            if max_bytes is not None and answer["ContentLength"] > max_bytes:
                raise read_judgement("TooManyBytes", self.uri(key))
            return Fetched(answer["Body"].read(), answer["ETag"].strip('"'))
        except (ClientError, BotoCoreError) as error:
            raise self._translate(error, self.uri(key)) from error

    def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        return asyncio.run(self._fetch_many(keys, max_bytes))

    async def _fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        places = asyncio.Semaphore(self._in_flight)

        async def fetch(key: str) -> Fetched | RejectError:
            async with places:
                return await self._fetch(key, max_bytes)

        return list(await asyncio.gather(*(fetch(key) for key in keys)))

    async def _fetch(self, key: str, max_bytes: int) -> Fetched | RejectError:
        try:
            if not _obstore_can_name(self._prefix + key):
                return await asyncio.to_thread(self._get_with_boto3, key, max_bytes)
            answer = await obstore.get_async(self._data, self._prefix + key)
            if answer.meta["size"] > max_bytes:
                return read_judgement("TooManyBytes", self.uri(key))
            return Fetched(bytes(await answer.bytes_async()), (answer.meta["e_tag"] or "").strip('"'))
        except RejectError as reject:
            return reject
        except Exception as error:
            failure = error if isinstance(error, StorageError) else self._translate(error, self.uri(key))
            match failure:
                case NotFoundError():
                    return read_judgement("NotFound", self.uri(key))
                case ForbiddenError():
                    return read_judgement("Forbidden", self.uri(key))
                case _:
                    return RejectError("read", "Unavailable", str(failure))

    def put(self, key: str, data: bytes) -> None:
        try:
            obstore.put(self._data, self._prefix + key, data)
        except Exception as error:
            raise self._translate(error, self.uri(key)) from error

    def put_file(self, key: str, path: Path, *, replace: bool = True) -> bool:
        try:
            with path.open("rb") as file:
                if not replace:
                    try:
                        self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=file, IfNoneMatch="*")
                    except ClientError as error:
                        code = _code(error)
                        if code in _EXISTS_CODES:
                            return False
                        if code not in _UNSUPPORTED_CODES:
                            raise
                        file.seek(0)
                    else:
                        return True
                obstore.put(self._data, self._prefix + key, file)
        except Exception as error:
            raise self._translate(error, self.uri(key)) from error
        return True

    def put_if_absent(self, key: str, data: bytes) -> bool:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*")
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and _code(error) in _EXISTS_CODES:
                return False
            raise self._translate(error, self.uri(key)) from error
        return True

    def delete(self, keys: Sequence[str]) -> None:
        names = [self._prefix + key for key in keys]
        try:
            for start in range(0, len(names), _DELETE_BATCH):
                obstore.delete(self._data, names[start : start + _DELETE_BATCH])
        except obstore_errors.NotFoundError:
            return
        except Exception as error:
            raise self._translate(error, self.root) from error

    def uri(self, key: str) -> str:
        return self.root + key

    def key(self, uri: str) -> str:
        return uri.removeprefix(self.root)

    def _translate(self, error: Exception, where: str) -> StorageError:
        if isinstance(error, StorageError):
            return error
        if isinstance(error, ClientError):
            code = _code(error)
            reason = error.response.get("Error", {}).get("Message", "")
            if code == "NoSuchBucket":
                return NotFoundError(f"{where}: there is no bucket {self._bucket} at {self._client.meta.endpoint_url}")
            if code in _GONE_CODES:
                return NotFoundError(f"{where}: not found")
            if code in _FORBIDDEN_CODES:
                return ForbiddenError(f"{where}: not allowed with these credentials ({code}: {reason})")
            if code in _UNSUPPORTED_CODES:
                return UnsupportedError(f"{where}: the store lacks this operation ({reason})")
            return UnavailableError(f"{where}: {code}: {reason}")
        if isinstance(error, NoCredentialsError):
            return ForbiddenError(f"{where}: no credentials found; set AWS_ACCESS_KEY_ID or a profile")
        if isinstance(error, (obstore_errors.NotFoundError, FileNotFoundError)):
            return NotFoundError(f"{where}: not found")
        if isinstance(error, (*_FORBIDDEN, PermissionError)):
            return ForbiddenError(f"{where}: not allowed with these credentials")
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return UnavailableError(f"{where}: {first_line}")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _obstore_can_name(key: str) -> bool:
    """Whether obstore takes a key verbatim; it folds or refuses empty, ``.`` and ``..`` segments and control bytes."""
    return all(part not in ("", ".", "..") for part in key.split("/")) and key.isprintable()
