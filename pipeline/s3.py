"""A bucket as a store. obstore reads, at a tenth of boto3's CPU time; boto3 does the rest, and what obstore refuses.

boto3 lists every key a bucket can hold (obstore gives up whole pages over a key such as ``a//b``), streams a file in
one PUT, which leaves nothing behind when its process dies, and tells 501 from a passing failure.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import cached_property
from typing import TYPE_CHECKING

import obstore
from botocore.exceptions import BotoCoreError, ClientError
from obstore import exceptions as obstore_errors

from pipeline.bounded import gather_bounded
from pipeline.errors import (
    ForbiddenError,
    NotFoundError,
    RejectError,
    StorageError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from pipeline.s3_clients import S3Clients
from pipeline.s3_errors import GONE_BUCKET, already_exists, code, translate
from pipeline.store import Fetched, ObjectInfo, read_judgement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BufferedReader
    from pathlib import Path

    from obstore.store import S3Store as ObstoreS3

    from pipeline.config import StorageConfig

_DELETE_BATCH = 1000  # the most keys one DeleteObjects request takes


class S3Store:
    """Objects below ``s3://bucket/prefix/``; the endpoint and credentials are those of boto3's chain.

    Several threads may use it at once; to open one makes no request.
    """

    def __init__(self, url: str, config: StorageConfig) -> None:
        bucket, _, prefix = url[len("s3://") :].partition("/")
        if not bucket:
            raise UsageError(f"{url}: the bucket is missing; write s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        self._in_flight = config.max_in_flight
        self._clients = S3Clients(config)
        self._client = self._clients.boto3()

    @cached_property
    def _reader(self) -> ObstoreS3:
        return self._clients.obstore(self._bucket, self._client)

    @property
    def root(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    def check(self, *, missing_ok: bool = False) -> None:
        del missing_ok
        try:
            self._clients.boto3(max_retries=1).list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        except ClientError as error:
            if code(error) == GONE_BUCKET:
                raise UsageError(f"there is no bucket {self._bucket} at {self._client.meta.endpoint_url}") from error
            raise self._translate(error, self.root) from error
        except BotoCoreError as error:
            raise UnavailableError(f"{self.root}: {error}; is AWS_ENDPOINT_URL right?") from error

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
        return self._get(key, None)

    def get_tail(self, key: str, size: int) -> bytes:
        return self._get(key, size)

    def _get(self, key: str, tail: int | None) -> bytes:
        name = self._prefix + key
        try:
            if not _obstore_can_name(name):
                data = self._get_with_boto3(key).data
                return data if tail is None else data[-tail:]
            options: obstore.GetOptions = {} if tail is None else {"range": {"suffix": tail}}
            return bytes(obstore.get(self._reader, name, options=options).bytes())
        except Exception as error:
            raise self._translate(error, self.uri(key)) from error

    def _get_with_boto3(self, key: str, max_bytes: int | None = None) -> Fetched:
        answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        with contextlib.closing(answer["Body"]) as body:
            if max_bytes is not None and answer["ContentLength"] > max_bytes:
                raise read_judgement("TooManyBytes", self.uri(key))
            return Fetched(body.read(), answer["ETag"].strip('"'))

    def get_file(self, key: str, path: Path) -> str:
        name = self._prefix + key
        try:
            if not _obstore_can_name(name):
                fetched = self._get_with_boto3(key)
                path.write_bytes(fetched.data)
                return fetched.version
            answer = obstore.get(self._reader, name)
            with path.open("wb") as file:
                for part in answer.stream():
                    file.write(part)
            return (answer.meta["e_tag"] or "").strip('"')
        except Exception as error:
            raise self._translate(error, self.uri(key)) from error

    def look_up(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        return asyncio.run(gather_bounded(self._look_up, keys, self._in_flight))

    async def _look_up(self, key: str) -> ObjectInfo | None:
        name = self._prefix + key
        try:
            if not _obstore_can_name(name):
                answer = await asyncio.to_thread(self._client.head_object, Bucket=self._bucket, Key=name)
                return ObjectInfo(key, answer["ContentLength"], answer["ETag"].strip('"'))
            meta = await obstore.head_async(self._reader, name)
            return ObjectInfo(key, meta["size"], (meta["e_tag"] or "").strip('"'))
        except Exception as error:
            failure = self._translate(error, self.uri(key))
            if isinstance(failure, NotFoundError):
                return None
            if isinstance(failure, ForbiddenError):
                return ObjectInfo.unseen(key)
            raise failure from error

    def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        return asyncio.run(gather_bounded(lambda key: self._fetch(key, max_bytes), keys, self._in_flight))

    async def _fetch(self, key: str, max_bytes: int) -> Fetched | RejectError:
        try:
            if not _obstore_can_name(self._prefix + key):
                return await asyncio.to_thread(self._get_with_boto3, key, max_bytes)
            answer = await obstore.get_async(self._reader, self._prefix + key)
            if answer.meta["size"] > max_bytes:
                return read_judgement("TooManyBytes", self.uri(key))
            return Fetched(bytes(await answer.bytes_async()), (answer.meta["e_tag"] or "").strip('"'))
        except RejectError as reject:
            return reject
        except Exception as error:
            match failure := self._translate(error, self.uri(key)):
                case NotFoundError():
                    return read_judgement("NotFound", self.uri(key))
                case ForbiddenError():
                    return read_judgement("Forbidden", self.uri(key))
                case _:
                    return RejectError("read", "Unavailable", str(failure))

    def put(self, key: str, data: bytes) -> None:
        self._put(key, data)

    def put_file(self, key: str, path: Path, *, replace: bool = True) -> bool:
        with path.open("rb") as file:
            if not replace:
                try:
                    return self._put_if_absent(key, file)
                except UnsupportedError:
                    if any(item.key == key for item in self.list_objects(key)):
                        return False
                    file.seek(0)
            self._put(key, file)
        return True

    def replace_file(self, key: str, path: Path, version: str) -> bool:
        with path.open("rb") as file:
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=file, IfMatch=f'"{version}"')
            except (ClientError, BotoCoreError) as error:
                if already_exists(error):
                    return False
                failure = self._translate(error, self.uri(key))
                if not isinstance(failure, UnsupportedError):
                    raise failure from error
                (found,) = self.look_up([key])
                if found is None or found.version != version:
                    return False
                file.seek(0)
                self._put(key, file)
        return True

    def _put(self, key: str, body: bytes | BufferedReader) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body)
        except (ClientError, BotoCoreError) as error:
            raise self._translate(error, self.uri(key)) from error

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._put_if_absent(key, data)

    def _put_if_absent(self, key: str, body: bytes | BufferedReader) -> bool:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body, IfNoneMatch="*")
        except (ClientError, BotoCoreError) as error:
            if already_exists(error):
                return False
            raise self._translate(error, self.uri(key)) from error
        return True

    def delete(self, keys: Sequence[str]) -> None:
        names = [self._prefix + key for key in keys]
        plain = [name for name in names if _obstore_can_name(name)]
        try:
            for start in range(0, len(plain), _DELETE_BATCH):
                with contextlib.suppress(obstore_errors.NotFoundError, FileNotFoundError):  # gone already
                    obstore.delete(self._reader, plain[start : start + _DELETE_BATCH])
            for name in names:
                if not _obstore_can_name(name):
                    self._client.delete_object(Bucket=self._bucket, Key=name)
        except Exception as error:
            raise self._translate(error, self.root) from error

    def sweep(self, prefix: str) -> int:
        del prefix
        return 0  # a PUT is there as a whole or not at all

    def uri(self, key: str) -> str:
        return self.root + key

    def key(self, uri: str) -> str:
        return uri.removeprefix(self.root)

    def _translate(self, error: Exception, where: str) -> StorageError:
        return translate(error, where, self._client.meta.endpoint_url)


def _obstore_can_name(key: str) -> bool:
    """Whether obstore takes a key verbatim; it folds or refuses empty, ``.`` and ``..`` segments and control bytes."""
    return all(part not in ("", ".", "..") for part in key.split("/")) and key.isprintable()
