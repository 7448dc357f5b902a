"""gs:// against moto's server: Google's XML API is that of S3."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from pipeline.config import StorageConfig
from pipeline.errors import RejectError, UsageError
from pipeline.source import list_rows
from pipeline.storage import Fetched, open_readable

if TYPE_CHECKING:
    from s3_server import Bucket

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
