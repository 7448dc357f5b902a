"""What there is to extract: every kind of source, what is taken of it, and what goes with it."""

from __future__ import annotations

import csv
import os
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SourceConfig, StorageConfig
from pipeline.errors import RejectError, UnavailableError, UsageError
from pipeline.located import Located
from pipeline.schema import MANIFEST_SCHEMA
from pipeline.seen import Seen
from pipeline.source import check_sources, kept_fields, list_rows, require_images

if TYPE_CHECKING:
    from pathlib import Path

    from s3_server import Bucket

HASTY = StorageConfig(max_retries=0)
ODD = ("a b.jpg", "ü.jpg", "a+b.jpg", "100%.jpg", "a%20b.jpg", "#1.jpg", "what?.jpg", "x;y=&.jpg", "sub/ folder/é#.jpg")


def rows(*sources: object, limit: int | None = None, said: list[str] | None = None, **listing: Any) -> list[Any]:
    """All rows, as dictionaries."""
    batches = list_rows(
        [str(source) for source in sources],
        SourceConfig(**listing),
        HASTY,
        limit,
        (said or []).append if said is None else said.append,
    )
    return [row for _, batch in batches for row in batch.to_pylist()]


def uris(*sources: object, **listing: Any) -> list[str]:
    return [row["uri"] for row in rows(*sources, **listing)]


def fill(folder: Path, *keys: str) -> Path:
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(key.encode())
    return folder


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    """As its suffix says; a text file has the first column alone."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    else:
        path.write_text("".join(f"{value}\n" for value in next(iter(columns.values()))), encoding="utf-8")
    return path


def test_only_images_are_taken_of_a_folder_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    fill(tmp_path, "a.JPG", "b.txt", "c/d.webp", "e.jpg.bak", "jpg", ".hidden.png")
    assert uris(tmp_path) == [f"{tmp_path}/{key}" for key in (".hidden.png", "a.JPG", "c/d.webp")]
    assert uris(tmp_path, limit=2) == [f"{tmp_path}/.hidden.png", f"{tmp_path}/a.JPG"]


def test_images_of_a_kind_that_is_not_decoded_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path, "a.jpg", "b.HEIC", "c/d.heic", "e.avif", "notes.txt", "f.svg.gz")
    said: list[str] = []
    assert [row["uri"] for row in rows(folder, said=said)] == [f"{folder}/a.jpg"]
    assert said == [f"note: images of {folder}/ that no decoder here reads are left out: 2 .heic, 1 .avif"]
    said.clear()
    assert len(rows(folder, include=("*.heic", "*.HEIC"), said=said)) == 2
    assert len(rows(folder, exclude=("*.heic", "*.HEIC", "*.avif"), said=said)) == 1
    assert said == []


def test_an_include_takes_the_place_of_the_suffixes_and_an_exclude_is_stronger(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.img", "x/c.img", "x/d.img")
    assert uris(tmp_path, include=("*.img",)) == [f"{tmp_path}/{key}" for key in ("b.img", "x/c.img", "x/d.img")]
    assert uris(tmp_path, include=("*.img",), exclude=("x/d*",)) == [f"{tmp_path}/b.img", f"{tmp_path}/x/c.img"]
    assert uris(tmp_path, exclude=("a.*",), include=()) == []


def test_several_sources_come_in_order_each_under_its_name_and_what_they_share_once(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "one", "b.jpg", "sub/a.jpg"), fill(tmp_path / "two", "a.jpg")
    said: list[str] = []
    found = list_rows([str(first), str(second), str(first / "sub")], say=said.append)
    assert [(name, batch["uri"].to_pylist()) for name, batch in found] == [
        (f"{first}/", [f"{first}/b.jpg", f"{first}/sub/a.jpg"]),
        (f"{second}/", [f"{second}/a.jpg"]),
    ]
    assert said == [f"note: 1 rows of {first}/sub/ name an image that came before and are left out"]


def test_a_single_file_is_a_source_whatever_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "photo")
    (row,) = rows(tmp_path / "photo")
    assert (row["uri"], row["size"]) == (f"{tmp_path}/photo", 5)
    assert row["etag"] == rows(tmp_path, include=("photo",))[0]["etag"]


def test_a_single_object_is_a_source_and_a_prefix_of_its_name_is_still_a_prefix(bucket: Bucket) -> None:
    bucket.fill({"a/photo.jpg": b"x", "odd.jpg/b.jpg": b"y"})
    assert uris(f"{bucket.url}/a/photo.jpg") == [f"{bucket.url}/a/photo.jpg"]
    assert uris(f"{bucket.url}/odd.jpg") == [f"{bucket.url}/odd.jpg/b.jpg"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".txt"])
def test_a_table_gives_its_uris_in_order_with_what_the_store_says_of_each(
    suffix: str, bucket: Bucket, tmp_path: Path
) -> None:
    bucket.fill({key: key.encode() for key in ODD})
    names = [f"{bucket.url}/{key}" for key in reversed(ODD)]
    found = rows(write_table(tmp_path / f"t{suffix}", {"uri": names}))
    listed = {row["uri"]: row for row in rows(bucket.url)}
    assert [row["uri"] for row in found] == names
    assert found == [listed[name] for name in names]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_case_of_a_tables_suffix_does_not_count(suffix: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", "a.jpg")
    table = write_table(tmp_path / f"t{suffix}", {"uri": [f"{folder}/a.jpg"], "caption": ["a cat"]})
    table = table.rename(tmp_path / f"T{suffix.upper()}")
    assert [(row["uri"], row["caption"]) for row in rows(table, keep=("caption",))] == [(f"{folder}/a.jpg", "a cat")]


def test_a_text_file_of_another_system_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\r\n  b.jpg \r\n\tc.jpg")
    assert uris(tmp_path / "t.txt") == [f"{tmp_path}/{name}.jpg" for name in "abc"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".txt"])
def test_of_a_long_table_every_row_comes_once_in_order(suffix: str, tmp_path: Path) -> None:
    names = [f"{tmp_path}/{number}.jpg" for number in range(2500)]
    said: list[str] = []
    assert [row["uri"] for row in rows(write_table(tmp_path / f"t{suffix}", {"uri": names}), said=said)] == names
    assert said == []


def test_the_only_column_names_the_images_whatever_it_is_called(tmp_path: Path) -> None:
    assert uris(write_table(tmp_path / "t.csv", {"photograph": ["a.jpg"]})) == [f"{tmp_path}/a.jpg"]


def test_the_column_that_names_the_images_can_be_kept_as_it_stands(tmp_path: Path) -> None:
    (row,) = rows(write_table(tmp_path / "t.parquet", {"url": ["./a.jpg"], "n": [1]}), keep=("url", "n"))
    assert (row["uri"], row["url"], row["n"]) == (f"{tmp_path}/a.jpg", "./a.jpg", 1)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_kept_columns_stand_beside_the_rows_they_came_with(suffix: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", "a.jpg", "b.jpg")
    captions = ['a cat, "asleep"\non two lines', ""]
    table = write_table(
        tmp_path / f"t{suffix}", {"n": ["1", "2"], "uri": [f"{folder}/b.jpg", f"{folder}/a.jpg"], "caption": captions}
    )
    found = rows(table, keep=("caption", "n"))
    assert [list(row) for row in found] == [[*MANIFEST_SCHEMA.names, "caption", "n"]] * 2
    assert [(row["uri"], row["caption"], row["n"]) for row in found] == [
        (f"{folder}/b.jpg", captions[0], "1"),
        (f"{folder}/a.jpg", "", "2"),
    ]


def test_a_table_in_a_bucket_is_read_from_there_and_relative_uris_are_below_its_folder(
    bucket: Bucket, tmp_path: Path
) -> None:
    table = write_table(tmp_path / "t.csv", {"url": ["img/a.jpg", "../b.jpg", f"{bucket.url}/c.jpg"]})
    bucket.fill({"x/t.csv": table.read_bytes(), "x/img/a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c"})
    found = rows(f"{bucket.url}/x/t.csv")
    assert [row["uri"] for row in found] == [f"{bucket.url}/{key}" for key in ("x/img/a.jpg", "b.jpg", "c.jpg")]
    assert [row["size"] for row in found] == [1, 1, 1]


def test_relative_paths_of_a_local_table_are_below_its_folder_from_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "data", "img/a.jpg", "b.jpg")
    table = write_table(tmp_path / "data" / "t.txt", {"uri": ["img/a.jpg", "./b.jpg", "../data/img/a.jpg"]})
    monkeypatch.chdir(tmp_path)
    assert uris(os.path.relpath(table)) == [f"{tmp_path}/data/img/a.jpg", f"{tmp_path}/data/b.jpg"]


def test_duplicates_of_a_table_stay_one_row_the_first_and_blank_ones_none_and_both_are_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path, "a.jpg", "b.jpg")
    names = [f"{folder}/a.jpg", f"{folder}/b.jpg", f"{folder}/a.jpg", None, f"{folder}/a.jpg", ""]
    table = write_table(tmp_path / "t.parquet", {"uri": names, "caption": list("123456")})
    said: list[str] = []
    found = rows(table, keep=("caption",), said=said)
    assert [(row["uri"], row["caption"]) for row in found] == [(names[0], "1"), (names[1], "2")]
    assert said == [
        f"note: 2 rows of {table} name no image and are left out",
        f"note: 2 rows of {table} name an image that came before and are left out",
    ]


def test_objects_that_are_not_there_or_not_to_be_seen_stay_rows_without_size_and_etag(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.fill({"a.jpg": b"a"})
    names = [f"{bucket.url}/a.jpg", f"{bucket.url}/gone.jpg", f"{tmp_path}/gone.jpg"]
    found = rows(write_table(tmp_path / "t.txt", {"uri": names}))
    assert [(row["uri"], row["size"], row["etag"] == "") for row in found] == [
        (names[0], 1, False),
        (names[1], 0, True),
        (names[2], 0, True),
    ]


def test_a_bucket_that_is_not_there_is_an_error_and_no_matter_of_single_rows(bucket: Bucket, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.txt", {"uri": ["s3://no-such-bucket/a.jpg"]})
    with pytest.raises(UsageError, match="there is no bucket no-such-bucket"):
        rows(table)


def test_a_row_that_is_no_uri_is_rejected_by_the_read_and_ends_no_listing(tmp_path: Path) -> None:
    folder = fill(tmp_path, "a.jpg", "b.jpg")
    names = [f"{folder}/a.jpg", "ftp://host/c.jpg", "s3://bucket", f"{folder}/b.jpg"]
    table = write_table(tmp_path / "t.txt", {"uri": names})
    require_images([str(table)], SourceConfig(), HASTY)
    listed = rows(table)
    assert [(row["uri"], row["size"]) for row in listed] == list(zip(names, (5, -1, -1, 5), strict=True))
    answers = Located([], HASTY).fetch_many(names, 100)
    assert [answer.error if isinstance(answer, RejectError) else "" for answer in answers] == [
        "",
        "BadUri",
        "BadUri",
        "",
    ]
    assert "the scheme ftp:// is not supported" in str(answers[1])


def test_globs_are_held_against_the_uris_of_a_table_whose_suffixes_do_not_count(tmp_path: Path) -> None:
    folder = fill(tmp_path, "a.jpg", "b.bin", "x/c.jpg")
    table = write_table(tmp_path / "t.txt", {"uri": ["a.jpg", "b.bin", "x/c.jpg"]})
    assert uris(table) == [f"{folder}/{key}" for key in ("a.jpg", "b.bin", "x/c.jpg")]
    assert uris(table, include=("*.jpg",), exclude=("**/x/*",)) == [f"{folder}/a.jpg"]


def test_a_folder_beside_a_table_has_no_values_in_the_kept_columns(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", "a.jpg")
    fill(tmp_path, "b.jpg")
    table = write_table(tmp_path / "t.csv", {"uri": ["b.jpg"], "caption": ["bee"]})
    found = rows(folder, table, keep=("caption",))
    assert [(row["uri"], row["caption"]) for row in found] == [(f"{folder}/a.jpg", None), (f"{tmp_path}/b.jpg", "bee")]


@pytest.mark.parametrize(
    ("columns", "listing", "complaint"),
    [
        ({"a": ["x"], "b": ["y"]}, {}, "which column names the images? give --uri-column; its columns are a, b"),
        ({"uri": ["x"], "b": ["y"]}, {"uri_column": "url"}, "no such column; did you mean uri?"),
        ({"uri": ["x"], "caption": ["y"]}, {"keep": ("captoin",)}, "no such column; did you mean caption?"),
        ({"uri": ["x"], "c": ["y"]}, {"keep": ("c", "c")}, "a column can be kept once"),
        ({"uri": [1]}, {}, "the column uri holds int64, not URIs"),
        ({"uri": ["x"], "c": [{"a": 1}]}, {"keep": ("c",)}, "which cannot be kept"),
    ],
)
def test_a_column_that_is_not_there_or_not_fit_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], listing: dict[str, Any], complaint: str
) -> None:
    table = write_table(tmp_path / "t.parquet", columns)
    with pytest.raises(UsageError) as refusal:
        require_images([str(table)], SourceConfig(**listing), HASTY)
    assert complaint in str(refusal.value)


OWN = ("uri", "size", "etag", "width", "height", "stage", "error", "message")
OUTPUTS = ("embedding", "patches", "class_index", "class_probability")


@pytest.mark.parametrize("name", [*OWN, *OUTPUTS])
def test_a_name_that_raysight_gives_a_column_of_its_own_cannot_be_kept(tmp_path: Path, name: str) -> None:
    table = write_table(tmp_path / "t.parquet", {"uri": ["x"], name: ["y"]})
    with pytest.raises(UsageError, match=f"--keep {name}: raysight writes a column of this name itself"):
        require_images([str(table)], SourceConfig(keep=(name,)), HASTY)


@pytest.mark.parametrize(
    ("source", "listing", "complaint"),
    [
        ("nowhere", {}, "there is no folder"),
        ("nowhere.csv", {}, "there is no table"),
        ("texts", {}, "holds no image: no name there ends in .jpg"),
        ("texts", {"include": ("*.jpg",)}, "nothing there matches --include"),
        ("images", {"include": ("",)}, "an empty pattern"),
        ("images", {"keep": ("caption",)}, "--keep is about tables of URIs"),
        ("images", {"uri_column": "url"}, "--uri-column is about tables of URIs"),
        ("empty.csv", {}, "cannot be read"),
        ("ragged.csv", {}, "cannot be read"),
        ("twice.csv", {}, "--uri-column uri: {}/twice.csv has 2 columns of this name"),
        ("latin.txt", {}, "cannot be read"),
        ("broken.parquet", {}, "cannot be read"),
        ("ftp.txt", {}, "the scheme ftp:// is not supported"),
        ("keyless.txt", {}, "write s3://bucket/key"),
    ],
)
def test_a_source_that_cannot_be_worked_with_is_refused_by_name(
    tmp_path: Path, source: str, listing: dict[str, Any], complaint: str
) -> None:
    fill(tmp_path, "images/a.jpg", "texts/notes.md", "broken.parquet")
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "ragged.csv").write_bytes(b"uri,b\na.jpg,1\nb.jpg,1,2\n")
    (tmp_path / "twice.csv").write_bytes(b"uri,uri\na.jpg,b.jpg\n")
    (tmp_path / "latin.txt").write_bytes("ü.jpg\n".encode("latin-1"))
    (tmp_path / "ftp.txt").write_text("ftp://host/a.jpg\n")
    (tmp_path / "keyless.txt").write_text("s3://bucket\n")
    with pytest.raises(UsageError) as refusal:
        require_images([str(tmp_path / source)], SourceConfig(**listing), HASTY)
    assert complaint.format(tmp_path) in str(refusal.value)


def test_sources_of_a_dataset_need_to_be_reached_and_may_be_empty(bucket: Bucket, tmp_path: Path) -> None:
    """A folder that lost all its images is no error of a rerun; --prune asks again."""
    (tmp_path / "empty").mkdir()
    table = write_table(tmp_path / "t.txt", {"uri": ["gone.jpg"]})
    check_sources([str(tmp_path / "empty"), str(table), bucket.url, f"{bucket.url}/nothing/here"], HASTY)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere", "there is no folder"),
        ("nowhere.csv", "there is no table"),
        ("s3://no-such-bucket/photos", "there is no bucket no-such-bucket"),
    ],
)
def test_a_source_of_a_dataset_that_is_gone_is_refused_also_behind_good_ones(
    bucket: Bucket, tmp_path: Path, source: str, complaint: str
) -> None:
    fill(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match=complaint):
        check_sources([str(tmp_path), source if "://" in source else str(tmp_path / source)], HASTY)


def test_a_store_that_does_not_answer_is_said_before_anything_is_listed(bucket: Bucket) -> None:
    bucket.server.set_faults(failing=True)
    with pytest.raises(UnavailableError, match=bucket.url):
        check_sources([bucket.url], HASTY)


def test_two_tables_must_agree_on_the_type_of_a_kept_column(tmp_path: Path) -> None:
    one = write_table(tmp_path / "one.parquet", {"uri": ["x"], "n": [1]})
    two = write_table(tmp_path / "two.csv", {"uri": ["y"], "n": ["2"]})
    with pytest.raises(UsageError, match=r"has int64 there, .*two\.csv string"):
        kept_fields([str(one), str(two)], SourceConfig(keep=("n",)), HASTY)


def test_types_of_kept_columns_are_plain_ones(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uri": pa.array(["a"]).dictionary_encode(),
            "word": pa.array(["x"]).dictionary_encode(),
            "long": pa.array(["x"], pa.large_string()),
            "tags": pa.array([["x"]], pa.large_list(pa.large_string())),
            "n": pa.array([1], pa.int16()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    fields = kept_fields([str(tmp_path / "t.parquet")], SourceConfig(keep=("word", "long", "tags", "n")), HASTY)
    assert [field.type for field in fields] == [pa.string(), pa.string(), pa.list_(pa.string()), pa.int16()]
    assert rows(tmp_path / "t.parquet", keep=("tags", "word"))[0]["tags"] == ["x"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)], pa.timestamp("us", "UTC")),
        pa.array([date(2026, 1, 2)]),
        pa.array([Decimal("1.50")], pa.decimal128(5, 2)),
        pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        pa.array([True]),
        pa.array([b"\0\1"]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_value_of_a_plain_type_is_kept_with_its_type(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg"], "it": column}), tmp_path / "t.parquet")
    ((_, batch),) = list_rows([str(tmp_path / "t.parquet")], SourceConfig(keep=("it",)), HASTY)
    assert batch["it"].equals(column)


@settings(deadline=None, max_examples=200)
@given(parts=st.lists(st.lists(st.integers(0, 40).map(str), max_size=12), max_size=12))
def test_seen_knows_what_came_before_as_a_set_does(parts: list[list[str]]) -> None:
    seen, oracle = Seen(), set[str]()
    for part in parts:
        expected = []
        for name in part:
            expected.append(name not in oracle)
            oracle.add(name)
        assert seen.add(part) == expected
