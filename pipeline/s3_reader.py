"""A bucket of S3, to be read. obstore does it at a tenth of boto3's CPU time; boto3 lists, and reads what that refuses.

boto3 lists every key a bucket can hold; obstore gives up whole pages over a key such as ``a//b``.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import cached_property
from typing import TYPE_CHECKING

import obstore
from botocore.exceptions import BotoCoreError, ClientError

from pipeline import obstore_reads
from pipeline.errors import StorageError, UnavailableError, UsageError
from pipeline.judgement import rejection
from pipeline.s3_clients import S3Clients
from pipeline.s3_errors import GONE_BUCKET, code, translate
from pipeline.store import Fetched, ObjectInfo
from pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from obstore.store import S3Store as ObstoreS3

    from pipeline.config import StorageConfig
    from pipeline.errors import RejectError


class S3Reader:
    """Objects below ``s3://bucket/prefix/``; the endpoint and credentials are those of boto3's chain.

    Several threads may use it at once; to open one makes no request.
    """

    def __init__(self, url: str, config: StorageConfig) -> None:
        bucket, _, prefix = url[len("s3://") :].partition("/")
        if not bucket:
            raise UsageError(f"{url}: the bucket is missing; write s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        self._window = Window(config.max_in_flight)
        self._clients = S3Clients(config)
        self._client = self._clients.boto3()

    @cached_property
    def _reader(self) -> ObstoreS3:
        return self._clients.obstore(self._bucket, self._client)

    @cached_property
    def _readers(self) -> tuple[ObstoreS3, ObstoreS3]:
        """One that does not retry, and one that does."""
        return self._clients.obstore(self._bucket, self._client, max_retries=0), self._reader

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
                    yield ObjectInfo(key[len(self._prefix) :], item["Size"], obstore_reads.version(item["ETag"]))
        except (ClientError, BotoCoreError) as error:
            raise self._translate(error, self.root + prefix) from error

    def get(self, key: str) -> bytes:
        return self._get(key, None)

    def get_tail(self, key: str, size: int) -> bytes:
        return self._get(key, size)

    def _get(self, key: str, tail: int | None) -> bytes:
        name = self._prefix + key
        try:
            if not obstore_can_name(name):
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
                raise rejection("TooManyBytes", self.uri(key))
            return Fetched(body.read(), obstore_reads.version(answer["ETag"]))

    def get_file(self, key: str, path: Path) -> str:
        name = self._prefix + key
        try:
            if not obstore_can_name(name):
                fetched = self._get_with_boto3(key)
                path.write_bytes(fetched.data)
                return fetched.version
            return obstore_reads.download(self._reader, name, path)
        except Exception as error:
            raise self._translate(error, self.uri(key)) from error

    def look_up(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        return obstore_reads.look_up_each(keys, self._look_up, self._translate, self.uri, self._window)

    async def _look_up(self, key: str) -> ObjectInfo:
        name = self._prefix + key
        if obstore_can_name(name):
            return await obstore_reads.head(self._reader, name, key)
        answer = await asyncio.to_thread(self._client.head_object, Bucket=self._bucket, Key=name)
        return ObjectInfo(key, answer["ContentLength"], obstore_reads.version(answer["ETag"]))

    def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        async def fetch(key: str) -> Fetched:
            if obstore_can_name(self._prefix + key):
                return await obstore_reads.fetch(
                    self._readers, self._window, self._prefix + key, self.uri(key), max_bytes
                )
            return await asyncio.to_thread(self._get_with_boto3, key, max_bytes)

        return obstore_reads.fetch_each(keys, fetch, self._translate, self.uri, self._window)

    def uri(self, key: str) -> str:
        return self.root + key

    def key(self, uri: str) -> str:
        return uri.removeprefix(self.root)

    def _translate(self, error: Exception, where: str) -> StorageError:
        return translate(error, where, self._client.meta.endpoint_url)


def obstore_can_name(key: str) -> bool:
    """Whether obstore takes a key verbatim; it folds or refuses empty, ``.`` and ``..`` segments and control bytes."""
    return all(part not in ("", ".", "..") for part in key.split("/")) and key.isprintable()
