from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.config import Config, StorageConfig
from pipeline.cut import Cut
from pipeline.errors import ForbiddenError, NotFoundError, UnavailableError, UsageError
from pipeline.generation import Listing, write_generation
from pipeline.judgement import rejection
from pipeline.local import LocalStore
from pipeline.manifest import ManifestReader
from pipeline.read import CHUNK_ROW_SCHEMA, read_chunk, read_chunks
from pipeline.source import list_rows
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from s3_server import Bucket, S3Server

    from pipeline.errors import RejectError
    from pipeline.storage import Fetched, Store

CUT = Cut(chunk_rows=4, chunk_bytes=1000, shard_rows=100)
HASTY = StorageConfig(max_retries=0)


def manifest_of(source: Store, folder: Path) -> ManifestReader:
    dest = LocalStore(str(folder))
    write_generation(dest, None, Listing((source.root,)), list_rows([source.root]), CUT)
    return ManifestReader(dest)


def outcomes(table: pa.Table) -> dict[str, Any]:
    """The last part of each uri → bytes, or the error of its reject."""
    row = table.to_pylist()[0]
    return {
        uri.rpartition("/")[2]: data if reject is None else reject["error"]
        for uri, data, reject in zip(row["uri"], row["data"], row["reject"], strict=True)
    }


def test_a_chunk_is_one_row_with_the_bytes_of_its_images_in_order(tmp_path: Path) -> None:
    source = LocalStore(str(tmp_path / "in"))
    for number in range(6):
        source.put(f"{number}.jpg", str(number).encode())
    manifest = manifest_of(source, tmp_path / "out")
    table = read_chunk(manifest, source, 0, 1, 10)
    assert table.schema == CHUNK_ROW_SCHEMA
    assert (table.num_rows, table["shard"][0].as_py(), table["chunk"][0].as_py()) == (1, 0, 1)
    assert table["uri"][0].as_py() == [f"{tmp_path}/in/4.jpg", f"{tmp_path}/in/5.jpg"]
    assert list(outcomes(table).items()) == [("4.jpg", b"4"), ("5.jpg", b"5")]


def test_a_task_gives_its_chunks_one_by_one(tmp_path: Path) -> None:
    source = LocalStore(str(tmp_path / "in"))
    for number in range(12):
        source.put(f"{number:02d}.jpg", b"x")
    manifest_of(source, tmp_path / "out")
    tables = read_chunks(Config(("elsewhere",), str(tmp_path / "out")), str(tmp_path / "in"), 0, [2, 0])
    assert [table["chunk"][0].as_py() for table in tables] == [2, 0]


def test_what_happened_to_an_image_since_the_listing_is_a_reject_of_its_own(tmp_path: Path) -> None:
    source = LocalStore(str(tmp_path / "in"))
    for name in ("big", "changed", "gone", "good"):
        source.put(f"{name}.jpg", name.encode() * (5 if name == "big" else 1))
    manifest = manifest_of(source, tmp_path / "out")
    source.put("changed.jpg", b"CHANGED")
    source.delete(["gone.jpg"])
    table = read_chunk(manifest, source, 0, 0, 10)
    assert outcomes(table) == {
        "big.jpg": "TooManyBytes",
        "changed.jpg": "Changed",
        "gone.jpg": "NotFound",
        "good.jpg": b"good",
    }
    assert {reject["stage"] for reject in table["reject"][0].as_py() if reject} == {"read"}


def test_an_image_listed_as_too_large_is_never_asked_for(bucket: Bucket, tmp_path: Path) -> None:
    bucket.fill({"big.jpg": b"x" * 11, "good.jpg": b"x"})
    source = open_store(bucket.url, HASTY)
    manifest = manifest_of(source, tmp_path)
    bucket.server.set_faults()
    assert outcomes(read_chunk(manifest, source, 0, 0, 10)) == {"big.jpg": "TooManyBytes", "good.jpg": b"x"}
    assert f"GET {bucket.name}/big.jpg" not in bucket.server.requests()


def test_gone_and_forbidden_objects_in_the_middle_of_a_bucket_are_rejects(bucket: Bucket, tmp_path: Path) -> None:
    bucket.fill({f"{name}.jpg": name.encode() for name in "abcd"})
    source = open_store(bucket.url, HASTY)
    manifest = manifest_of(source, tmp_path)
    bucket.server.set_faults(forbidden=("b.jpg",), gone=("c.jpg",))
    assert outcomes(read_chunk(manifest, source, 0, 0, 10)) == {
        "a.jpg": b"a",
        "b.jpg": "Forbidden",
        "c.jpg": "NotFound",
        "d.jpg": b"d",
    }


def test_an_object_that_the_store_cannot_deliver_is_a_reject_when_the_others_come(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.fill({f"{name}.jpg": name.encode() for name in "abcd"})
    source = open_store(bucket.url, HASTY)
    manifest = manifest_of(source, tmp_path)
    bucket.server.set_faults(slow_down={"b.jpg": 100})
    assert outcomes(read_chunk(manifest, source, 0, 0, 10))["b.jpg"] == "Unavailable"
    bucket.server.set_faults(slow_down={"b.jpg": 100, "c.jpg": 100})
    with pytest.raises(UnavailableError, match="2 of 4 reads of chunk 0/0 failed: s3://"):
        read_chunk(manifest, source, 0, 0, 10)


def test_what_failed_is_asked_for_once_more_before_it_is_judged(bucket: Bucket, tmp_path: Path) -> None:
    bucket.fill({f"{name}.jpg": name.encode() for name in "abcd"})
    source = open_store(bucket.url, HASTY)
    manifest = manifest_of(source, tmp_path)
    bucket.server.set_faults(slow_down={"a.jpg": 1, "b.jpg": 1, "c.jpg": 1})
    assert outcomes(read_chunk(manifest, source, 0, 0, 10)) == {f"{name}.jpg": name.encode() for name in "abcd"}
    assert bucket.server.requests()[f"GET {bucket.name}/d.jpg"] == 1


def test_a_store_that_goes_down_within_a_chunk_rejects_nothing(bucket: Bucket, tmp_path: Path) -> None:
    """One of four reads fails, too few to look like an outage; the store itself is asked."""
    bucket.fill({f"{name}.jpg": name.encode() for name in "abcd"})
    inner = open_store(bucket.url, HASTY)
    manifest = manifest_of(inner, tmp_path)

    class GoesDown:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def fetch_many(self, keys: list[str], max_bytes: int) -> Any:
            first = inner.fetch_many(keys[:3], max_bytes)
            bucket.server.set_faults(failing=True)
            return [*first, *inner.fetch_many(keys[3:], max_bytes)]

    with pytest.raises(UnavailableError, match=bucket.name):
        read_chunk(manifest, GoesDown(), 0, 0, 10)


def forbid(server: S3Server, *names: str) -> None:
    server.set_faults(forbidden=tuple(f"{name}.jpg" for name in names))


def test_a_chunk_in_which_nothing_may_be_read_is_rejected_when_something_else_may(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.fill({f"{name}.jpg": name.encode() for name in "abcdefgh"})
    source = open_store(bucket.url, HASTY)
    manifest = manifest_of(source, tmp_path)
    forbid(bucket.server, *"abcdefg")
    assert outcomes(read_chunk(manifest, source, 0, 0, 10)) == {f"{name}.jpg": "Forbidden" for name in "abcd"}


def test_a_source_of_which_nothing_may_be_read_rejects_nothing(bucket: Bucket, tmp_path: Path) -> None:
    bucket.fill({f"{name}.jpg": name.encode() for name in "abcdefgh"})
    source = open_store(bucket.url, HASTY)
    manifest = manifest_of(source, tmp_path)
    forbid(bucket.server, *"abcdefgh")
    with pytest.raises(
        ForbiddenError, match=rf"^not one of 8 images.*may be read: .*not allowed.*s3://{bucket.name}/a"
    ):
        read_chunk(manifest, source, 0, 1, 10)


def test_a_lone_new_image_that_may_not_be_read_is_rejected_beside_older_ones_that_may(
    bucket: Bucket, tmp_path: Path
) -> None:
    """Other shards of the same source are looked into; those of another source say nothing of it."""
    bucket.fill({f"{name}.jpg": name.encode() for name in "abcdefgh"} | {"other/x.jpg": b"x", "other/y.jpg": b"y"})
    source, dest = open_store(bucket.url, HASTY), LocalStore(str(tmp_path))
    rows = [(source.root, row) for _, batch in list_rows([source.root]) for row in batch.to_pylist()]
    by_name = {row["uri"].removeprefix(source.root): (root, pa.RecordBatch.from_pylist([row])) for root, row in rows}
    older, new, other = by_name["a.jpg"], by_name["b.jpg"], (("elsewhere", by_name["other/x.jpg"][1]))
    first = write_generation(dest, None, Listing((source.root,)), [older], CUT)
    second = write_generation(dest, first, Listing((source.root,)), [new], CUT)
    write_generation(dest, second, Listing(("elsewhere",)), [other], CUT)
    forbid(bucket.server, "b")
    assert outcomes(read_chunk(ManifestReader(dest), source, 1, 0, 10)) == {"b.jpg": "Forbidden"}
    forbid(bucket.server, "a", "b")
    with pytest.raises(ForbiddenError, match="not one of 2 images"):
        read_chunk(ManifestReader(dest), source, 1, 0, 10)


def test_images_of_the_web_that_are_forbidden_are_rejects_since_each_server_speaks_for_itself(tmp_path: Path) -> None:
    class Refusing:
        root = "http://127.0.0.1/"

        def key(self, uri: str) -> str:
            return uri

        def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
            return [rejection("Forbidden", key) for key in keys]

    batch = pa.RecordBatch.from_pylist(
        [{"uri": f"https://example.com/{name}.jpg", "size": 1, "etag": "e"} for name in "ab"],
        schema.MANIFEST_SCHEMA,
    )
    dest = LocalStore(str(tmp_path))
    write_generation(dest, None, Listing(("table.csv",)), [("table.csv", batch)], CUT)
    found = outcomes(read_chunk(ManifestReader(dest), Refusing(), 0, 0, 10))  # type: ignore[arg-type]
    assert found == {"a.jpg": "Forbidden", "b.jpg": "Forbidden"}


def test_the_only_image_there_is_may_be_forbidden(bucket: Bucket, tmp_path: Path) -> None:
    bucket.fill({"a.jpg": b"a"})
    source = open_store(bucket.url, HASTY)
    manifest = manifest_of(source, tmp_path)
    forbid(bucket.server, "a")
    assert outcomes(read_chunk(manifest, source, 0, 0, 10)) == {"a.jpg": "Forbidden"}


def test_a_bucket_or_folder_that_vanished_as_a_whole_rejects_nothing(tmp_path: Path) -> None:
    source = LocalStore(str(tmp_path / "in"))
    source.put("a.jpg", b"a")
    manifest = manifest_of(source, tmp_path / "out")
    (tmp_path / "in").rename(tmp_path / "unplugged")
    with pytest.raises(UsageError, match="there is no folder"):
        read_chunk(manifest, source, 0, 0, 10)


def test_a_chunk_that_the_manifest_lacks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="shard-000007"):
        read_chunk(ManifestReader(LocalStore(str(tmp_path))), LocalStore(str(tmp_path)), 7, 0, 10)


def test_many_gets_are_under_way_at_once_but_no_more_than_allowed(bucket: Bucket, tmp_path: Path) -> None:
    """Twelve answers of 0.3 s each take two rounds of six at least."""
    bucket.fill({f"{number:02d}.jpg": b"x" for number in range(12)})
    source = open_store(bucket.url, StorageConfig(max_in_flight=6))
    source.fetch_many(["00.jpg"], 10)
    bucket.server.set_faults(delay_s=0.3)
    start = time.monotonic()
    source.fetch_many([f"{number:02d}.jpg" for number in range(12)], 10)
    assert time.monotonic() - start >= 0.6
    assert bucket.server.requests()["at_once"] in range(2, 7)


def test_several_tasks_of_one_worker_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = LocalStore(str(tmp_path / "in"))
    for number in range(40):
        source.put(f"{number:02d}.jpg", str(number).encode())
    dest = LocalStore(str(tmp_path / "out"))
    write_generation(dest, None, Listing((source.root,)), list_rows([source.root]), Cut(2, 1000, 4))
    config = Config((str(tmp_path / "in"),), str(tmp_path / "out"))
    with ThreadPoolExecutor(4) as pool:
        tables = pool.map(lambda shard: list(read_chunks(config, config.sources[0], shard, [0, 1])), [*range(10)] * 10)
        seen = [outcomes(table) for task in tables for table in task]
    expected = [{f"{n:02d}.jpg": str(n).encode() for n in (first, first + 1)} for first in range(0, 40, 2)]
    assert seen == expected * 10
