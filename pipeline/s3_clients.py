"""The two clients of a bucket, boto3 and obstore, with the same endpoint, credentials, timeouts and retries."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config as BotoConfig
from botocore.exceptions import ClientError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store as ObstoreS3

from pipeline.obstore_reads import client_options

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from pipeline.config import StorageConfig

_CREDENTIALS_TTL = timedelta(minutes=9)
"""How long obstore may use credentials without asking: botocore hands out none with less than ten minutes to live."""


class S3Clients:
    """Makes clients; the endpoint and credentials are those of boto3's chain. Nothing here asks the store."""

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self._session = boto3.session.Session()
        self._unsigned = config.anonymous or self._session.get_credentials() is None

    def boto3(self, max_retries: int | None = None) -> S3Client:
        """A boto3 client; it can be used by several threads."""
        retries = self._config.max_retries if max_retries is None else max_retries
        settings: dict[str, Any] = {"signature_version": UNSIGNED} if self._unsigned else {}
        client: S3Client = self._session.client(
            "s3",
            region_name=self._session.region_name or "us-east-1",
            config=BotoConfig(
                connect_timeout=self._config.connect_timeout_s,
                read_timeout=self._config.timeout_s,
                retries={"mode": "standard", "total_max_attempts": 1 + retries},
                # Stores other than AWS often refuse the newer checksum trailers.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                **settings,
            ),
        )
        return client

    def obstore(self, bucket: str, client: S3Client, max_retries: int | None = None) -> ObstoreS3:
        """An obstore client of a bucket, for the endpoint of ``client``; it keeps a pool of connections.

        Raises:
            BotoCoreError: AWS could not be asked for the bucket's region.
        """
        endpoint = client.meta.endpoint_url
        options: dict[str, Any] = {"region": client.meta.region_name}
        if not (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
            options["endpoint"] = endpoint
        else:
            options["region"] = bucket_region(bucket, client)
        if self._unsigned:
            options["skip_signature"] = True
        else:
            options["credential_provider"] = Boto3CredentialProvider(self._session, ttl=_CREDENTIALS_TTL)
        return ObstoreS3(
            bucket,
            **client_options(
                self._config,
                self._config.max_retries if max_retries is None else max_retries,
                allow_http=endpoint.startswith("http://"),
            ),
            **options,
        )


def bucket_region(bucket: str, client: S3Client) -> str:
    """Where a bucket lies: boto3 follows AWS's redirect to it, obstore does not. Any answer says it, also a 403."""
    answer: Any
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    region: str = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", client.meta.region_name)
    return region
