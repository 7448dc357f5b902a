"""A stranger's story, through the command line alone: a table of objects with captions, kept current."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import duckdb
import jobs
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from s3_server import Bucket

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

OUTPUTS = ("--features", "embedding,patches,classes", *jobs.MODEL)


def write_table(path: Path, bucket: Bucket, names: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows((f"{bucket.url}/{name}", f"this is {name}, they say") for name in names)


def rows(dest: Path, bucket: Bucket) -> dict[str, Any]:
    """Name → (caption, etag, sizes of the outputs)."""
    found = duckdb.sql(
        "select uri, caption, etag, len(embedding), len(patches), len(patches[1]), len(class_index),"
        f" class_probability[1] from '{dest}/features/*.parquet'"
    ).fetchall()
    assert len({row[0] for row in found}) == len(found)
    for uri, caption, _, *sizes, best in found:
        assert caption == f"this is {uri.removeprefix(bucket.url + '/')}, they say"
        assert sizes == [64, 100, 64, 5]  # test_vit: 160 px in patches of 16
        assert 0 < best <= 100
    return {row[0].removeprefix(f"{bucket.url}/"): row[2] for row in found}


def rejects(dest: Path, bucket: Bucket) -> dict[str, tuple[str, str]]:
    found = duckdb.sql(f"select uri, error, caption from '{dest}/rejects/*.parquet'").fetchall()
    return {uri.removeprefix(f"{bucket.url}/"): (error, caption) for uri, error, caption in found}


def test_a_table_with_captions_becomes_all_outputs_and_stays_current(
    bucket: Bucket, tmp_path: Path, photographs: dict[str, bytes]
) -> None:
    table, dest = tmp_path / "captions.csv", tmp_path / "out"
    data = list(photographs.values())[:12]
    names = [f"photos/{number:02d} ä+%.jpg" for number in range(12)]
    bucket.fill(dict(zip(names, data, strict=True)))
    write_table(table, bucket, names)
    env = bucket.server.environment()
    arguments = ("extract", table, dest, "--uri-column", "url", "--keep", "caption", *OUTPUTS)

    code, output = jobs.run(*arguments, env=env)
    assert code == 0, output
    before = rows(dest, bucket)
    assert before.keys() == set(names)

    for number in range(3):
        bucket.fill({names[number]: data[number + 4]})
    bucket.fill({names[3]: b"no image any more"})
    for name in names[4:6]:
        bucket.client.delete_object(Bucket=bucket.name, Key=name)
    code, output = jobs.run(*arguments, "--prune", env=env)
    assert code == 0, output
    assert "0 new, 4 changed" in output
    assert jobs.last_line(output)["rows"] == 3
    after = rows(dest, bucket)
    assert after.keys() == {*names[:3], *names[6:]}
    assert {name for name in after if after[name] != before[name]} == set(names[:3])
    assert rejects(dest, bucket) == {names[3]: ("NotAnImage", f"this is {names[3]}, they say")}
    code, output = jobs.run("verify", dest, "--sample", "9", env=env)
    assert code == 0, output

    bucket.fill({names[3]: data[3]})
    code, output = jobs.run("retry-rejects", dest, env=env)
    assert code == 0, output
    assert rows(dest, bucket).keys() == {*names[:4], *names[6:]}
    assert not list(dest.glob("rejects/*.parquet"))
    code, output = jobs.run("verify", dest, env=env)
    assert code == 0, output
