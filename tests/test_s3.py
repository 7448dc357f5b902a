from __future__ import annotations

import hashlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import Bucket, S3Server, use_environment

from pipeline.config import StorageConfig
from pipeline.errors import CredentialsError, NotFoundError, RejectError, UnavailableError, UnsupportedError, UsageError
from pipeline.s3_clients import bucket_region
from pipeline.storage import Fetched, open_store

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = StorageConfig()
HASTY = StorageConfig(max_retries=1)

ODD_KEYS = (
    "a b.jpg",
    " lead.jpg",
    "trail .jpg ",
    "photos/ü/日本 🎉.jpg",
    "e\u0301.jpg",  # not the same key as its composed form
    "\u00e9.jpg",
    "a+b.jpg",
    "a%b.jpg",
    "a%20b.jpg",
    "a%2Fb.jpg",
    "a#b.jpg",
    "a?b=c&d.jpg",
    "a//b.jpg",
    "/lead.jpg",
    "./x.jpg",
    "a/./b.jpg",
    "a/../b.jpg",
    "trail.jpg/",
    "..",
    "k=1/v&w.jpg",
    "\"quo'te<>.jpg",
    "back\\slash.jpg",
    "~|[x]{y}^`*,;:@$!().jpg",
    "nbsp\u00a0zero\u200bwidth.jpg",
    "\x7fdel\x01.jpg",
    "file://x.jpg",
    "s3://x.jpg",
)


def errors(answers: list[Fetched | RejectError]) -> list[str]:
    return [answer.error if isinstance(answer, RejectError) else "" for answer in answers]


def test_more_keys_than_a_page_holds_are_listed_once_each_fetched_and_deleted(bucket: Bucket) -> None:
    objects = {f"photos/{number:05d}.jpg": str(number).encode() for number in range(1100)}
    bucket.fill({**objects, "elsewhere.jpg": b"x"})
    store = open_store(f"{bucket.url}/photos", CONFIG)
    listed = list(store.list_objects())
    assert [f"photos/{item.key}" for item in listed] == sorted(objects)
    assert [item.size for item in listed] == [len(objects[f"photos/{item.key}"]) for item in listed]
    fetched = store.fetch_many([item.key for item in listed], 100)
    assert [item.data for item in fetched if isinstance(item, Fetched)] == [objects[key] for key in sorted(objects)]
    store.delete([item.key for item in listed])
    assert bucket.keys() == ["elsewhere.jpg"]


def test_odd_keys_are_listed_and_fetched_with_their_own_bytes(bucket: Bucket) -> None:
    bucket.fill({f"in/{key}": key.encode() for key in ODD_KEYS})
    store = open_store(f"{bucket.url}/in", CONFIG)
    listed = {item.key: item.version for item in store.list_objects()}
    assert set(listed) == set(ODD_KEYS)
    answers = store.fetch_many(ODD_KEYS, 100)
    assert answers == [Fetched(key.encode(), hashlib.md5(key.encode()).hexdigest()) for key in ODD_KEYS]
    assert listed == {key: answer.version for key, answer in zip(ODD_KEYS, answers, strict=True)}
    for key in ODD_KEYS:
        assert (store.get(key), store.get_tail(key, 2)) == (key.encode(), key.encode()[-2:])
        assert store.key(store.uri(key)) == key


def test_odd_keys_are_written_and_deleted_under_their_own_names(bucket: Bucket) -> None:
    store = open_store(f"{bucket.url}/out//of/../the ordinary", CONFIG)
    for key in ODD_KEYS:
        store.put(key, key.encode())
    prefix = "out//of/../the ordinary/"
    keys = bucket.keys()
    assert {key: bucket.get(key) for key in keys} == {prefix + key: key.encode() for key in ODD_KEYS}
    store.delete(ODD_KEYS)
    assert bucket.keys() == []


def test_any_key_comes_back_as_it_was_put(bucket: Bucket) -> None:
    store = open_store(f"{bucket.url}/any", CONFIG)

    @settings(max_examples=60, deadline=None)
    @given(key=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
    def check(key: str) -> None:
        store.put(key, key.encode())
        assert [item.key for item in store.list_objects()] == [key]
        assert errors(store.fetch_many([key], 1000)) == [""]
        assert store.get(store.key(store.uri(key))) == key.encode()
        store.delete([key])
        assert bucket.keys() == []

    check()


def test_what_is_wrong_with_one_object_stands_in_its_place(bucket: Bucket) -> None:
    bucket.fill(dict.fromkeys("abcd", b"x" * 10) | {"big": b"x" * 11, "odd//big": b"x" * 11})
    bucket.server.set_faults(forbidden=("b",), gone=("c",))
    answers = open_store(bucket.url, CONFIG).fetch_many(["a", "b", "c", "d", "never", "big", "odd//big"], 10)
    assert errors(answers) == ["", "Forbidden", "NotFound", "", "NotFound", "TooManyBytes", "TooManyBytes"]
    assert isinstance(answers[1], RejectError)
    assert (answers[1].stage, answers[1].message[-len(bucket.name) - 7 :]) == ("read", f"s3://{bucket.name}/b")


def test_a_store_that_asks_to_slow_down_is_asked_again(bucket: Bucket) -> None:
    bucket.fill({"a": b"1", "odd//b": b"2"})
    store = open_store(bucket.url, CONFIG)
    bucket.server.set_faults(slow_down={"a": 3, "odd//b": 1})
    assert errors(store.fetch_many(["a", "odd//b"], 10)) == ["", ""]
    assert bucket.server.requests()[f"GET {bucket.name}/a"] == 4


def test_an_answer_that_breaks_off_is_not_taken_for_a_short_object(bucket: Bucket) -> None:
    data = b"0123456789" * 100_000
    bucket.fill({"a": data})
    store = open_store(bucket.url, CONFIG)
    bucket.server.set_faults(cut_off={"a": 1})
    assert store.fetch_many(["a"], len(data)) == [Fetched(data, hashlib.md5(data).hexdigest())]
    bucket.server.set_faults(cut_off={"a": 1})
    assert store.get("a") == data


def test_an_object_that_never_arrives_is_unavailable_not_gone(bucket: Bucket) -> None:
    bucket.fill({"a": b"1", "b": b"2"})
    bucket.server.set_faults(slow_down={"a": 100})
    assert errors(open_store(bucket.url, HASTY).fetch_many(["a", "b"], 10)) == ["Unavailable", ""]


@pytest.mark.parametrize("code", ["AuthenticationRequired", "ExpiredToken", "InvalidAccessKeyId", "NoSuchBucket"])
def test_what_is_wrong_with_all_objects_rejects_none(bucket: Bucket, code: str) -> None:
    """These come with 401, 400, 403 and 404, as what is wrong with one object does."""
    bucket.fill({"a": b"1", "odd//b": b"2"})
    bucket.server.set_faults(refusing=code)
    store = open_store(bucket.url, HASTY)
    assert errors(store.fetch_many(["a", "odd//b"], 10)) == ["Unavailable", "Unavailable"]
    with pytest.raises(UnavailableError if code == "NoSuchBucket" else CredentialsError, match=code):
        store.put("c", b"")


def test_a_store_that_is_down_is_an_error_of_every_call(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = open_store(bucket.url, HASTY)
    bucket.server.set_faults(failing=True)
    calls = (
        lambda: list(store.list_objects()),
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: store.put_if_absent("a", b""),
        lambda: store.put_file("a", tmp_path / "file"),
        lambda: store.put_file("a", tmp_path / "file", replace=False),
        lambda: store.delete(["a"]),
        lambda: store.delete(["odd//a"]),
        store.check,
    )
    for call in calls:
        with pytest.raises(UnavailableError, match=f"s3://{bucket.name}"):
            call()


def test_a_server_that_goes_away_refuses_connections_and_that_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with S3Server() as server:
        use_environment(server, monkeypatch)
        server.client().create_bucket(Bucket="going")
        store = open_store("s3://going", HASTY)
        store.put("a", b"1")
        assert errors(store.fetch_many(["a"], 10)) == [""]
        server.kill()
        assert errors(store.fetch_many(["a"], 10)) == ["Unavailable"]
        with pytest.raises(UnavailableError, match="s3://going/a"):
            store.put("a", b"2")


def test_a_wrong_endpoint_is_named_by_the_first_contact(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(UnavailableError, match=f"{endpoint}.*AWS_ENDPOINT_URL"):
            open_store(bucket.url, CONFIG).check()


def test_a_bucket_that_does_not_exist_is_named_by_the_first_contact(bucket: Bucket) -> None:
    with pytest.raises(UsageError, match=f"no bucket nobody-made-this at {bucket.server.url}"):
        open_store("s3://nobody-made-this/photos", CONFIG).check()
    open_store(f"{bucket.url}/photos", CONFIG).check(missing_ok=True)


def test_the_region_of_a_bucket_is_asked_for_and_guessed_where_nobody_says(s3: S3Server) -> None:
    client = s3.client()
    client.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert client.meta.region_name == "us-east-1"
    assert bucket_region("far-away", client) == "eu-west-1"
    assert bucket_region("nobody-made-this", client) == "us-east-1"


def test_a_url_without_a_bucket_is_refused() -> None:
    with pytest.raises(UsageError, match="the bucket is missing"):
        open_store("s3:///photos", CONFIG)


@pytest.mark.parametrize("how", ["no credentials", "asked for"])
def test_anonymous_requests_are_not_signed(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    bucket.client.put_bucket_acl(Bucket=bucket.name, ACL="public-read")
    for key in ("a", "odd//b"):
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"1", ACL="public-read")
    if how == "no credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    bucket.server.set_faults(no_signatures=True)
    store = open_store(bucket.url, StorageConfig(anonymous=how == "asked for"))
    assert [item.key for item in store.list_objects()] == ["a", "odd//b"]
    assert errors(store.fetch_many(["a", "odd//b"], 10)) == ["", ""]


def test_a_conditional_put_lets_the_first_one_win(bucket: Bucket, tmp_path: Path) -> None:
    store = open_store(bucket.url, CONFIG)
    assert store.put_if_absent("a", b"first")
    assert not store.put_if_absent("a", b"second")
    (tmp_path / "file").write_bytes(b"third")
    assert not store.put_file("a", tmp_path / "file", replace=False)
    assert bucket.get("a") == b"first"
    assert store.put_file("a", tmp_path / "file")
    assert store.put_file("b", tmp_path / "file", replace=False)
    assert (bucket.get("a"), bucket.get("b")) == (b"third", b"third")


def test_where_conditional_puts_are_lacking_a_lease_cannot_be_won_but_a_file_is_written_once(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.server.set_faults(no_conditional_puts=True)
    store = open_store(bucket.url, CONFIG)
    with pytest.raises(UnsupportedError):
        store.put_if_absent("a", b"")
    (tmp_path / "file").write_bytes(b"first")
    assert store.put_file("a", tmp_path / "file", replace=False)
    (tmp_path / "file").write_bytes(b"second")
    assert not store.put_file("a", tmp_path / "file", replace=False)
    assert bucket.get("a") == b"first"


def test_one_of_many_racing_conditional_puts_wins(bucket: Bucket) -> None:
    store = open_store(bucket.url, CONFIG)
    start = threading.Barrier(8)

    def put(number: int) -> bool:
        start.wait()
        return store.put_if_absent("a", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(8)))
    assert won.count(True) == 1
    assert bucket.get("a") == str(won.index(True)).encode()


def test_a_large_object_goes_up_and_comes_back_whole(bucket: Bucket, tmp_path: Path) -> None:
    data = bytes(range(256)) * (24 << 12)  # 24 MiB
    (tmp_path / "file").write_bytes(data)
    store = open_store(bucket.url, CONFIG)
    store.put_file("a", tmp_path / "file", replace=False)
    assert store.get("a") == data
    assert [item.size for item in store.list_objects()] == [len(data)]
    assert store.get_tail("a", 1000) == data[-1000:]


def test_get_tail_gives_a_short_object_as_a_whole_and_names_a_missing_one(bucket: Bucket) -> None:
    bucket.fill({"a": b"123"})
    store = open_store(bucket.url, CONFIG)
    assert store.get_tail("a", 100) == b"123"
    with pytest.raises(NotFoundError):
        store.get_tail("b", 100)
    with pytest.raises(NotFoundError):
        store.get("b")


def test_deleting_what_is_gone_is_done_at_once(bucket: Bucket) -> None:
    bucket.fill({"a": b"1"})
    store = open_store(bucket.url, CONFIG)
    store.delete(["a", "never", "odd//never"])
    store.delete([])
    assert bucket.keys() == []


def test_chunks_are_fetched_from_any_thread_over_connections_that_stay_open(bucket: Bucket) -> None:
    keys = [f"{number}" for number in range(20)]
    bucket.fill({key: key.encode() for key in keys})
    store = open_store(bucket.url, StorageConfig(max_in_flight=4))
    bucket.server.set_faults()
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: store.fetch_many(keys, 10), range(30)))
    assert all(
        [item.data for item in answer if isinstance(item, Fetched)] == [k.encode() for k in keys] for answer in answers
    )
    requests = bucket.server.requests()
    assert sum(count for name, count in requests.items() if name.startswith("GET ")) == 600
    assert requests["connections"] <= 3 * 4 * 2  # and not one for each request
