"""gs:// against moto's server: Google's XML API is that of S3."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from pipeline.config import StorageConfig
from pipeline.cut import Cut
from pipeline.errors import CredentialsError, ForbiddenError, RejectError, UsageError
from pipeline.generation import Listing, write_generation
from pipeline.local import LocalStore
from pipeline.located import Located
from pipeline.manifest import ManifestReader
from pipeline.read import read_chunk
from pipeline.source import list_rows
from pipeline.storage import Fetched, open_readable

if TYPE_CHECKING:
    from pathlib import Path

    from s3_server import Bucket, S3Server

ANONYMOUS = StorageConfig(anonymous=True, max_retries=0)
KEYS = ("a b.jpg", "ü.jpg", "a+b.jpg", "100%.jpg", "a%20b.jpg", "#1.jpg", "what?.jpg", "x/y z/é#.jpg")


@pytest.fixture
def google(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a bucket with the keys, each holding its own name."""
    monkeypatch.setenv("GOOGLE_BASE_URL", bucket.server.url)
    name = f"photos{uuid.uuid4().hex[:12]}"  # moto does not understand a bucket%2Dname, as obstore writes it
    bucket.client.create_bucket(Bucket=name)
    for key in KEYS:
        bucket.client.put_object(Bucket=name, Key=key, Body=key.encode(), ACL="public-read")
    return f"gs://{name}"


@pytest.fixture
def clouds(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server that stands in for Google and for Azure where nothing but its faults is wanted."""
    monkeypatch.setenv("GOOGLE_BASE_URL", bucket.server.url)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", bucket.server.url)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    return bucket.server


def test_a_google_bucket_is_listed_looked_up_and_read_alike(google: str) -> None:
    check_store(google, ANONYMOUS)


def test_what_is_wrong_with_one_object_of_google_stands_in_its_place(google: str, bucket: Bucket) -> None:
    bucket.server.set_faults(forbidden=("ü.jpg",), gone=("#1.jpg",))
    store = open_readable(google, ANONYMOUS)
    answers = store.fetch_many(["ü.jpg", "#1.jpg", "nowhere.jpg", "a//b.jpg", "x/y z/é#.jpg", "a b.jpg"], 8)
    assert [answer.error if isinstance(answer, RejectError) else answer.data for answer in answers] == [
        "Forbidden",
        "NotFound",
        "NotFound",
        "NotFound",
        "TooManyBytes",
        b"a b.jpg",
    ]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("gs://photos", "AuthenticationRequired"),
        ("gs://photos", "ExpiredToken"),
        ("gs://photos", "InvalidAccessKeyId"),
        ("az://photos", "AuthenticationFailed"),
        ("az://photos", "NoAuthenticationInformation"),
        ("az://photos", "PublicAccessNotPermitted"),
    ],
)
def test_credentials_that_a_cloud_does_not_take_reject_no_image(
    clouds: S3Server, url: str, code: str, tmp_path: Path
) -> None:
    clouds.set_faults(refusing=code)
    store = open_readable(url, ANONYMOUS)
    assert [answer.error for answer in store.fetch_many(["a.jpg", "b.jpg"], 8) if isinstance(answer, RejectError)] == [
        "Unavailable",
        "Unavailable",
    ]
    for call in (store.check, lambda: list(store.list_objects()), lambda: store.get_file("a.jpg", tmp_path / "a")):
        with pytest.raises(CredentialsError, match=f"^{url}/.*{code}.*credentials"):
            call()


@pytest.mark.parametrize("url", ["gs://photos", "az://photos"])
def test_a_cloud_that_does_not_know_who_asks_ends_a_look_up(clouds: S3Server, url: str) -> None:
    """The answer to a HEAD has no body, so nothing but the status is known."""
    clouds.set_faults(refusing="NoAuthenticationInformation")
    with pytest.raises(CredentialsError, match="401"):
        open_readable(url, ANONYMOUS).look_up(["a.jpg"])


@pytest.mark.parametrize("url", ["gs://photos", "az://photos"])
def test_a_cloud_that_allows_no_listing_says_so(clouds: S3Server, url: str) -> None:
    clouds.set_faults(refusing="AccessDenied")
    with pytest.raises(ForbiddenError, match="AccessDenied"):
        open_readable(url, ANONYMOUS).check()


def test_a_token_that_expires_between_two_chunks_ends_the_job_and_rejects_nothing(
    google: str, bucket: Bucket, tmp_path: Path
) -> None:
    source = open_readable(google, ANONYMOUS)
    dest = LocalStore(str(tmp_path))
    write_generation(dest, None, Listing((google,)), list_rows([google], storage=ANONYMOUS), Cut(4, 1 << 20, 100))
    manifest = ManifestReader(dest)
    located = Located([google], ANONYMOUS)
    assert read_chunk(manifest, located, 0, 0, 100)["reject"][0].as_py() == [None] * 4
    bucket.server.set_faults(refusing="AuthenticationRequired")
    with pytest.raises(CredentialsError, match=f"^{source.root}: AuthenticationRequired at Google"):
        read_chunk(manifest, located, 0, 1, 100)


def test_a_google_bucket_that_is_not_there_is_refused(google: str) -> None:
    with pytest.raises(UsageError, match="there is no bucket gs://no-such-bucket"):
        open_readable("gs://no-such-bucket/x", ANONYMOUS).check()


def check_store(url: str, storage: StorageConfig) -> None:
    """The listing, a table of the same URIs and the reads agree; a prefix is taken by whole segments."""
    store = open_readable(url, storage)
    store.check()
    listed = {row["uri"]: row for _, batch in list_rows([url], storage=storage) for row in batch.to_pylist()}
    assert set(listed) == {f"{url}/{key}" for key in KEYS}
    infos = store.look_up([*KEYS, "nowhere.jpg"])
    assert infos.pop() is None
    fetched = store.fetch_many(KEYS, 100)
    for key, info, answer in zip(KEYS, infos, fetched, strict=True):
        row = listed[f"{url}/{key}"]
        assert info is not None
        assert answer == Fetched(key.encode(), row["etag"])
        assert (info.size, info.version) == (row["size"], row["etag"]) == (len(key.encode()), answer.version)
    assert [batch["uri"].to_pylist() for _, batch in list_rows([f"{url}/x"], storage=storage)] == [
        [f"{url}/x/y z/é#.jpg"]
    ]
