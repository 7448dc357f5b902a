"""The job from a bucket into a bucket, on a real S3 server process and a real local Ray."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import duckdb
import jobs
import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from s3_server import Bucket

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ODD = (
    "with space.jpg",
    "ünï/cödé 图.jpg",
    "plus+sign.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "hash#1.jpg",
    "q?a=1&b=2.jpg",
    "a//b.jpg",
)


def download(bucket: Bucket, prefix: str, folder: Path) -> Path:
    """The dataset as files, so that DuckDB reads it."""
    shutil.rmtree(folder, ignore_errors=True)
    for key in bucket.keys(prefix):
        path = folder / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.get(key))
    return folder


@pytest.fixture
def images(tmp_path: Path, photographs: Mapping[str, bytes]) -> list[bytes]:
    return [path.read_bytes() for path in jobs.write_corpus(tmp_path / "corpus", photographs, 40)]


def test_more_than_a_thousand_keys_go_from_a_bucket_into_a_bucket(
    bucket: Bucket, images: list[bytes], tmp_path: Path
) -> None:
    plain = {f"photos/{number:05d}.jpg": images[number % len(images)] for number in range(1100)}
    odd = {f"photos/{name}": images[0] for name in ODD}
    bucket.fill({**plain, **odd, "photos/readme.txt": b"not an image", "elsewhere/x.jpg": images[0]})
    forbidden, gone = "photos/00500.jpg", "photos/00777.jpg"
    bucket.server.set_faults(
        forbidden=(forbidden,), gone=(gone,), slow_down={"photos/00003.jpg": 2}, no_conditional_puts=True
    )
    source, dest = f"{bucket.url}/photos", f"{bucket.url}/out"
    settings = {"job": {"chunk_rows": 64, "shard_rows": 512}}
    env = bucket.server.environment()

    code, output = jobs.run("extract", source, dest, *jobs.MODEL, settings=settings, env=env)

    assert code == 0, output
    local = download(bucket, "out/", tmp_path / "out")
    uris = {f"s3://{bucket.name}/{key}" for key in (*plain, *odd)}
    bad = {f"s3://{bucket.name}/{key}" for key in (forbidden, gone)}
    assert jobs.features(local).keys() == uris - bad
    assert {uri: error for uri, (_, error, _) in jobs.rejects(local).items()} == {
        f"s3://{bucket.name}/{forbidden}": "Forbidden",
        f"s3://{bucket.name}/{gone}": "NotFound",
    }
    etags = dict(duckdb.sql(f"select uri, etag from '{local}/features/*.parquet'").fetchall())
    listed = {
        f"s3://{bucket.name}/{item['Key']}": item["ETag"].strip('"')
        for page in bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix="photos/")
        for item in page["Contents"]
    }
    assert all(listed[uri] == etag for uri, etag in etags.items())
    code, output = jobs.run("verify", dest, "--sample", "4", env=env)
    assert code == 0, output
    assert "1,106 features + 2 rejects" in output


def test_a_job_killed_in_a_bucket_is_finished_by_the_next(bucket: Bucket, images: list[bytes], tmp_path: Path) -> None:
    bucket.fill({f"photos/{number:05d}.jpg": image for number, image in enumerate(images)})
    source, dest = f"{bucket.url}/photos", f"{bucket.url}/out"
    settings = {"factory": "slow", "job": {"chunk_rows": 4, "shard_rows": 16}}
    env = bucket.server.environment()
    process = jobs.start("extract", source, dest, *jobs.MODEL, settings=settings, env=env)
    jobs.until(lambda: bucket.keys("out/_raysight/chunks/"), process, "a committed chunk")
    jobs.kill_tree(process)
    process.communicate()
    assert json.loads(bucket.get("out/_raysight/lease.json"))["pid"] == process.pid
    code, output = jobs.run("extract", source, dest, *jobs.MODEL, settings=settings, env=env)
    assert code == 0, output
    assert jobs.last_line(output)["skipped"] > 0
    local = download(bucket, "out/", tmp_path / "out")
    assert len(jobs.features(local)) == len(images)
    code, output = jobs.run("verify", dest, "--sample", "4", env=env)
    assert code == 0, output


def test_a_store_that_fails_ends_the_job_without_rejects_and_the_next_run_finishes(
    bucket: Bucket, images: list[bytes], tmp_path: Path
) -> None:
    bucket.fill({f"photos/{number:05d}.jpg": image for number, image in enumerate(images)})
    source, dest = f"{bucket.url}/photos", tmp_path / "out"
    settings = {"job": {"chunk_rows": 4}, "storage": {"max_retries": 1, "retry_timeout_s": 2.0}}
    env = bucket.server.environment()
    process = jobs.start("extract", source, dest, *jobs.MODEL, settings=settings, env=env)
    jobs.until(lambda: (dest / "_raysight/manifest/committed.json").exists(), process, "a manifest")
    bucket.server.set_faults(failing=True)
    code, output = jobs.finish(process)
    assert code == 1, output
    assert output.splitlines()[-1].startswith(f"raysight: {source}/: InternalError")
    assert not list(dest.glob("rejects/*"))
    bucket.server.set_faults()
    code, output = jobs.run("extract", source, dest, *jobs.MODEL, settings=settings, env=env)
    assert code == 0, output
    assert len(jobs.features(dest)) == len(images)


def test_an_object_that_changes_after_the_listing_is_rejected_not_mixed_up(
    bucket: Bucket, images: list[bytes], tmp_path: Path
) -> None:
    bucket.fill({f"photos/{number:05d}.jpg": image for number, image in enumerate(images)})
    source, dest = f"{bucket.url}/photos", tmp_path / "out"
    settings = {"factory": "slow", "job": {"chunk_rows": 4}}
    process = jobs.start("extract", source, dest, *jobs.MODEL, settings=settings, env=bucket.server.environment())
    jobs.until(lambda: (dest / "_raysight/manifest/committed.json").exists(), process, "a manifest")
    bucket.fill({"photos/00039.jpg": images[0]})
    code, output = jobs.finish(process)
    assert code == 0, output
    assert [error for _, error, _ in jobs.rejects(dest).values()] == ["Changed"]
    assert len(jobs.features(dest)) == len(images) - 1


def test_a_public_bucket_needs_no_credentials(bucket: Bucket, images: list[bytes], tmp_path: Path) -> None:
    for number, image in enumerate(images[:8]):
        bucket.client.put_object(Bucket=bucket.name, Key=f"photos/{number}.jpg", Body=image, ACL="public-read")
    bucket.server.set_faults(no_signatures=True)
    env = {name: value for name, value in bucket.server.environment().items() if "KEY" not in name}
    process_env = {**env, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    code, output = jobs.run("extract", f"{bucket.url}/photos", tmp_path / "out", *jobs.MODEL, env=process_env)
    assert code == 0, output
    assert len(jobs.features(tmp_path / "out")) == 8


def test_a_bucket_that_does_not_exist_is_a_clear_error(bucket: Bucket, tmp_path: Path) -> None:
    code, output = jobs.run(
        "extract", "s3://no-such-bucket/x", tmp_path / "out", *jobs.MODEL, env=bucket.server.environment()
    )
    assert code == 2
    assert output == f"raysight: there is no bucket no-such-bucket at {bucket.server.url}\n"
