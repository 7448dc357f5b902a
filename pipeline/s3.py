"""A bucket of S3 as a store. boto3 writes: it streams a file in one PUT, which leaves nothing behind when its process
dies, and tells 501 from a passing failure.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import obstore
from botocore.exceptions import BotoCoreError, ClientError
from obstore import exceptions as obstore_errors

from pipeline.errors import NotFoundError, UnsupportedError
from pipeline.s3_errors import already_exists
from pipeline.s3_reader import S3Reader, obstore_can_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedReader
    from pathlib import Path

_DELETE_BATCH = 1000  # the most keys one DeleteObjects request takes


class S3Store(S3Reader):
    """Objects below ``s3://bucket/prefix/``, to be read and written. Several threads may use it at once."""

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
                if isinstance(failure, NotFoundError):
                    return False
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
        plain = [name for name in names if obstore_can_name(name)]
        try:
            for start in range(0, len(plain), _DELETE_BATCH):
                with contextlib.suppress(obstore_errors.NotFoundError, FileNotFoundError):  # gone already
                    obstore.delete(self._reader, plain[start : start + _DELETE_BATCH])
            for name in names:
                if not obstore_can_name(name):
                    self._client.delete_object(Bucket=self._bucket, Key=name)
        except Exception as error:
            raise self._translate(error, self.root) from error

    def sweep(self, prefix: str) -> int:
        del prefix
        return 0  # a PUT is there as a whole or not at all
