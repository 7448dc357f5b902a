"""The S3 server of the tests does what its faults say; else the tests that rest on it prove nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from s3_server import Bucket


def status(error: pytest.ExceptionInfo[ClientError]) -> int:
    return error.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_without_faults_what_is_put_is_listed_and_read(bucket: Bucket) -> None:
    bucket.fill({"a/b c.jpg": b"1", "a/d.jpg": b"22"})
    assert bucket.keys() == ["a/b c.jpg", "a/d.jpg"]
    assert bucket.get("a/d.jpg") == b"22"


def test_faults_of_single_keys_leave_the_others_alone(bucket: Bucket) -> None:
    bucket.fill({"bad": b"1", "gone": b"2", "slow": b"3", "good": b"4"})
    bucket.server.set_faults(forbidden=("bad",), gone=("gone",), slow_down={"slow": 1})
    for key, expected in (("bad", 403), ("gone", 404), ("slow", 503)):
        with pytest.raises(ClientError) as error:
            bucket.get(key)
        assert status(error) == expected
    assert (bucket.get("slow"), bucket.get("good")) == (b"3", b"4")
    assert bucket.server.requests()[f"GET {bucket.name}/slow"] == 2
    assert bucket.keys() == ["bad", "gone", "good", "slow"]


def test_a_store_without_conditional_puts_answers_501_to_them_alone(bucket: Bucket) -> None:
    bucket.server.set_faults(no_conditional_puts=True)
    with pytest.raises(ClientError) as error:
        bucket.client.put_object(Bucket=bucket.name, Key="x", Body=b"1", IfNoneMatch="*")
    assert status(error) == 501
    bucket.fill({"x": b"1"})
    assert bucket.get("x") == b"1"


def test_faults_end_when_they_are_set_anew(bucket: Bucket) -> None:
    bucket.server.set_faults(failing=True)
    with pytest.raises(ClientError) as error:
        bucket.keys()
    assert status(error) == 500
    bucket.server.set_faults()
    assert bucket.keys() == []
