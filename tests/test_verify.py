from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from datasets import LIMITS, MODEL, STORAGE, extract, write_photographs

from pipeline.cut import Cut
from pipeline.errors import UsageError
from pipeline.extractor import load_extractor
from pipeline.verify import verify
from serve.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3_server import Bucket

BAD = {
    "zz-empty.jpg": b"",
    "zz-text.png": b"this is no image",
    "zz-short.jpg": b"\xff\xd8\xff\xe0 and no more",
}
CUT = Cut(chunk_rows=4, chunk_bytes=1 << 26, shard_rows=12)
FIRST, SECOND = "features/shard-000000.parquet", "features/shard-000001.parquet"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, bytes]) -> Path:
    """Fifteen photographs and three bad files, extracted into two shards of 12 and 6 rows."""
    root = tmp_path_factory.mktemp("pristine")
    write_photographs(root / "in", photographs, BAD)
    extract(str(root / "in"), str(root / "out"), load_extractor(MODEL, LIMITS), CUT)
    return root / "out"


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "out"))


def findings(dest: Path, sample: int = 0) -> str:
    """What verify finds wrong, all lines in one; empty when it finds the dataset good."""
    said: list[str] = []
    good = verify(str(dest), sample, LIMITS, STORAGE, said.append)
    problems = [line for line in said if line.startswith("PROBLEM")]
    assert good == (not problems)
    assert said[-1].startswith("ok" if good else "FAILED")
    return "\n".join(problems)


def rewrite(dest: Path, key: str, change: Callable[[pa.Table], pa.Table], **metadata: Any) -> None:
    """Changes a shard and keeps the rest of it, its metadata included."""
    table = pq.read_table(dest / key)
    old = pq.read_metadata(dest / key).metadata or {}
    new = change(table)
    values = old.get(b"raysight")
    if values and metadata:
        values = json.dumps({**json.loads(values), **metadata}).encode()
    new = new.replace_schema_metadata({b"raysight": values} if values else None)
    pq.write_table(new, dest / key, row_group_size=CUT.chunk_rows)


def with_vectors(table: pa.Table, values: np.ndarray[Any, Any]) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), pa.float32()), values.shape[1])
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", column)


def vectors(table: pa.Table) -> np.ndarray[Any, Any]:
    return np.array(table["embedding"].to_pylist(), np.float32)


def rejects_shard(dest: Path) -> Path:
    (path,) = (dest / "rejects").iterdir()
    return path


def test_a_good_dataset_is_good_and_every_row_of_it_agrees_with_timm(
    pristine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(pristine), "--sample", "100"]) == 0
    printed = capsys.readouterr().out
    assert "15 features + 3 rejects = 18" in printed
    assert "15 rows again by timm in fp32: least cosine 0.9999" in printed
    assert "(bound 0.9999), largest difference" in printed
    assert printed.splitlines()[-1].startswith("ok")


def test_it_needs_no_ray(pristine: Path) -> None:
    code = (
        "import sys; from serve.cli import main; code = main(sys.argv[1:]); "
        "assert 'ray' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "verify", str(pristine), "--sample", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


def test_a_damaged_dataset_ends_the_command_with_1_and_no_dataset_with_2(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / SECOND).unlink()
    assert main(["verify", str(dataset), "--sample", "0"]) == 1
    assert "PROBLEM" in capsys.readouterr().out
    assert main(["verify", str(tmp_path)]) == 2
    assert "holds no raysight dataset" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_listing_that_never_finished_is_no_dataset_yet(dataset: Path) -> None:
    (dataset / "_raysight/manifest/committed.json").unlink()
    with pytest.raises(UsageError, match="never finished; the same raysight extract begins it anew"):
        findings(dataset)


def test_a_description_that_makes_no_sense_is_named(dataset: Path) -> None:
    path = dataset / "_raysight/dataset.json"
    values = json.loads(path.read_text())
    for changed in (
        {**values, "model": {"from": "the future"}},
        {**values, "fingerprint": {}},
        [],
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(UsageError, match=r"dataset\.json cannot be read by this version"):
            findings(dataset)


def test_a_missing_row_is_found(dataset: Path) -> None:
    lost = pq.read_table(dataset / FIRST)["uri"][2].as_py()
    rewrite(dataset, FIRST, lambda table: pa.concat_tables([table.slice(0, 2), table.slice(3)]))
    assert findings(dataset) == f"PROBLEM      shard 0 lacks 1 rows: {lost}"


@pytest.mark.parametrize(("missing", "more"), [(5, ""), (7, " and 2 more")])
def test_five_examples_are_named_of_many(dataset: Path, missing: int, more: str) -> None:
    uris = pq.read_table(dataset / FIRST)["uri"].to_pylist()
    rewrite(dataset, FIRST, lambda table: table.slice(missing))
    assert findings(dataset) == f"PROBLEM      shard 0 lacks {missing} rows: {', '.join(uris[:5])}{more}"


def test_a_row_that_is_there_twice_is_found(dataset: Path) -> None:
    rewrite(dataset, FIRST, lambda table: pa.concat_tables([table, table.slice(1, 1)]))
    assert "shard 0 has 1 rows too many" in findings(dataset)


def test_a_row_in_the_features_and_in_the_rejects_is_found(dataset: Path) -> None:
    row = pq.read_table(rejects_shard(dataset)).slice(0, 1)
    twin = pq.read_table(dataset / SECOND).slice(0, 1)
    for name in ("uri", "etag"):
        twin = twin.set_column(twin.schema.get_field_index(name), name, row[name].combine_chunks())
    rewrite(dataset, SECOND, lambda table: pa.concat_tables([table, twin.cast(table.schema)]))
    assert "shard 1 has 1 rows too many" in findings(dataset)


def test_a_row_of_another_version_of_the_object_is_found(dataset: Path) -> None:
    def older(table: pa.Table) -> pa.Table:
        return table.set_column(1, "etag", pa.array(["older", *table["etag"].to_pylist()[1:]]))

    rewrite(dataset, FIRST, older)
    found = findings(dataset)
    assert "shard 0 lacks 1 rows" in found
    assert "shard 0 has 1 rows too many" in found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_found_with_its_image(dataset: Path, value: float) -> None:
    uri = pq.read_table(dataset / FIRST)["uri"][9].as_py()  # of the last of three row groups

    def poison(table: pa.Table) -> pa.Table:
        values = vectors(table)
        values[9, 7] = value
        return with_vectors(table, values)

    rewrite(dataset, FIRST, poison)
    assert findings(dataset) == f"PROBLEM      {FIRST}: embedding is not finite: {uri}"


def test_a_row_without_a_vector_is_found(dataset: Path) -> None:
    def blank(table: pa.Table) -> pa.Table:
        kept = pc.if_else(pc.equal(table["uri"], table["uri"][0]), None, pa.array(range(len(table))))
        column = table["embedding"].combine_chunks().take(kept.combine_chunks())
        return table.set_column(table.schema.get_field_index("embedding"), "embedding", column)

    rewrite(dataset, FIRST, blank)
    assert f"{FIRST}: 1 rows have no embedding" in findings(dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: with_vectors(t, vectors(t)[:, :-1]),
            "there should be embedding: float32[64], not embedding: float32[63]",
        ),
        (lambda t: t.drop_columns("embedding"), "there should be a column embedding: float32[64]"),
        (lambda t: t.drop_columns("width"), "lacks columns: width: int32"),
        (lambda t: t.set_column(0, "uri", pa.array(range(len(t)))), "lacks columns: uri: string"),
        (lambda t: t.set_column(2, "width", pa.array([0] * len(t), pa.int32())), "width or height is missing"),
        (lambda t: t.set_column(3, "height", pa.nulls(len(t), pa.int32())), "width or height is missing"),
    ],
)
def test_columns_that_are_not_as_promised_are_found(
    dataset: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    rewrite(dataset, FIRST, change)
    assert message in findings(dataset)


def test_a_shard_of_another_fingerprint_is_found(dataset: Path) -> None:
    fingerprint = json.loads(pq.read_metadata(dataset / FIRST).metadata[b"raysight"])["fingerprint"]
    rewrite(dataset, FIRST, lambda table: table, fingerprint={**fingerprint, "precision": "bf16"})
    assert findings(dataset) == f"PROBLEM      {FIRST} has another fingerprint than the dataset"


def test_a_shard_that_tells_nothing_of_itself_is_found(dataset: Path) -> None:
    pq.write_table(pq.read_table(dataset / FIRST).replace_schema_metadata(None), dataset / FIRST)
    assert f"{FIRST} has another fingerprint" in findings(dataset)


def test_a_shard_of_another_format_is_found(dataset: Path) -> None:
    rewrite(dataset, FIRST, lambda table: table, format=1)
    assert findings(dataset) == f"PROBLEM      {FIRST} says format 1, where the dataset has 2"


def test_a_shard_that_is_not_sealed_is_found(dataset: Path) -> None:
    (dataset / SECOND).unlink()
    assert findings(dataset, sample=5) == f"PROBLEM      1 of 2 shards are not sealed (6 rows): {SECOND}"


def broken_page(data: bytes) -> bytes:
    """The header of the first page."""
    return data[:4] + b"x" * 56 + data[60:]


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: b"x" * 500, broken_page])
def test_a_file_that_is_no_parquet_is_found(dataset: Path, damage: Callable[[bytes], bytes]) -> None:
    (dataset / FIRST).write_bytes(damage((dataset / FIRST).read_bytes()))
    assert "shard 0 is damaged" in findings(dataset)


def test_lost_rejects_are_found(dataset: Path) -> None:
    rejects_shard(dataset).unlink()
    found = findings(dataset)
    assert "rejects of shard 1 should be" in found
    assert "shard 1 lacks 3 rows" in found


@pytest.mark.parametrize("name", ["stage", "error", "message"])
def test_changed_rejects_are_found(dataset: Path, name: str) -> None:
    path = rejects_shard(dataset)

    def blank(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, pa.nulls(len(table), pa.string()))

    rewrite(dataset, str(path.relative_to(dataset)), blank)
    found = findings(dataset)
    assert f"{path.name} is not what its name says" in found
    assert f"{path.name} has rejects without {name}" in found


def test_rejects_without_a_column_are_found(dataset: Path) -> None:
    path = rejects_shard(dataset)
    rewrite(dataset, str(path.relative_to(dataset)), lambda table: table.drop_columns("message"))
    assert f"{path.name} lacks columns: message: string" in findings(dataset)


def test_rejects_that_no_shard_refers_to_are_found(dataset: Path) -> None:
    shutil.copy(rejects_shard(dataset), dataset / "rejects/shard-000000-0123456789abcdef.parquet")
    assert (
        "rejects of shard 0 should be [], but there are ['rejects/shard-000000-0123456789abcdef.parquet']"
        in findings(dataset)
    )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("features/notes.txt", "an object that raysight did not write: features/notes.txt"),
        ("features/part-0.parquet", "an object that raysight did not write"),
        ("features/shard-1.parquet", "an object that raysight did not write"),
        ("rejects/old/shard-000000-0123456789abcdef.parquet", "an object that raysight did not write"),
        ("rejects/shard-000000-0123.parquet", "an object that raysight did not write"),
        ("features/shard-000007.parquet", "shard 7 is not in the manifest: features/shard-000007.parquet"),
        ("rejects/shard-000007-0123456789abcdef.parquet", "shard 7 is not in the manifest"),
    ],
)
def test_foreign_files_are_found(dataset: Path, key: str, message: str) -> None:
    (dataset / key).parent.mkdir(exist_ok=True)
    shutil.copy(dataset / FIRST, dataset / key)
    assert message in findings(dataset)


def test_a_changed_or_lost_manifest_shard_is_found(dataset: Path) -> None:
    key = "_raysight/manifest/shard-000000.parquet"
    rewrite(dataset, key, lambda table: table.slice(1))
    assert findings(dataset) == f"PROBLEM      {key} is not the one that was committed"
    (dataset / key).unlink()
    assert findings(dataset) == f"PROBLEM      {key} is gone"


def test_a_uri_that_the_manifest_names_twice_is_found(dataset: Path) -> None:
    """Both shards made the same, and all digests put right: only the manifest as a whole is wrong."""
    manifest, marker = dataset / "_raysight/manifest", dataset / "_raysight/manifest/committed.json"
    first = manifest / "shard-000000.parquet"
    shutil.copy(first, manifest / "shard-000001.parquet")
    shutil.copy(dataset / FIRST, dataset / SECOND)
    rejects_shard(dataset).unlink()
    values = json.loads(marker.read_text())
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    values["shards"] = [{**shard, "sha256": digest} for shard in values["shards"]]
    marker.write_text(json.dumps(values))
    assert findings(dataset) == "PROBLEM      two live rows of the manifest have the same uri"


@pytest.mark.parametrize("key", [FIRST, SECOND])
def test_one_altered_vector_is_found_by_a_sample_of_all_rows(dataset: Path, key: str) -> None:
    """Its values stay finite and its width right: nothing but computing it again can tell."""
    intact, table = (dataset / key).read_bytes(), pq.read_table(dataset / key)
    for row in (0, len(table) - 1):
        uri = table["uri"][row].as_py()

        def alter(table: pa.Table, row: int = row) -> pa.Table:
            values = vectors(table)
            values[row, 5] += 0.5 * np.abs(values[row]).max()
            return with_vectors(table, values)

        rewrite(dataset, key, alter)
        assert findings(dataset) == ""
        (found,) = findings(dataset, sample=18).splitlines()
        assert f"{uri}: cosine 0." in found
        (dataset / key).write_bytes(intact)


def test_two_vectors_changed_for_each_other_are_found(dataset: Path) -> None:
    def swap(table: pa.Table) -> pa.Table:
        values = vectors(table)
        values[[0, 1]] = values[[1, 0]]
        return with_vectors(table, values)

    rewrite(dataset, FIRST, swap)
    assert len(findings(dataset, sample=18).splitlines()) == 2


def test_what_a_sample_says_of_itself_is_its_worst_row(dataset: Path) -> None:
    def alter(table: pa.Table) -> pa.Table:
        values = vectors(table)
        values[4, 5] += 0.007 * np.linalg.norm(values[4])  # a cosine of 0.99998: less than any, and within the bound
        return with_vectors(table, values)

    rewrite(dataset, FIRST, alter)
    altered = 0.007 * np.linalg.norm(vectors(pq.read_table(dataset / FIRST))[4])
    said: list[str] = []
    assert verify(str(dataset), 18, LIMITS, STORAGE, said.append), said
    (line,) = (line for line in said if line.startswith("sample"))
    found = re.search(r"least cosine ([\d.]+) .* largest difference ([\d.e+-]+),", line)
    assert found is not None
    assert float(found[1]) == pytest.approx(1 - 0.007**2 / 2, abs=1e-5)
    assert float(found[2]) == pytest.approx(altered, rel=0.3)


def test_features_of_what_is_no_image_are_found(tmp_path: Path, photographs: dict[str, bytes]) -> None:
    """The object has the version of the row: nothing says that it has changed."""
    write_photographs(tmp_path / "in", {"rocket.jpg": photographs["rocket.jpg"]})
    extract(str(tmp_path / "in"), str(tmp_path / "out"), load_extractor(MODEL, LIMITS), CUT)
    path = tmp_path / "in/rocket.jpg"
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert f"{path}: cosine nan" in findings(tmp_path / "out", sample=1)


def test_a_sample_has_as_many_rows_as_asked_for_and_the_same_each_time(pristine: Path) -> None:
    def sampled() -> list[str]:
        said: list[str] = []
        assert verify(str(pristine), 5, LIMITS, STORAGE, said.append)
        return [line for line in said if line.startswith("sample")]

    first = sampled()
    assert "5 rows again" in first[0]
    assert sampled() == first


def test_weights_that_are_not_the_datasets_are_found_before_a_row_is_compared(dataset: Path) -> None:
    path = dataset / "_raysight/dataset.json"
    values = json.loads(path.read_text())
    values["model"]["weights"] = "random:1"
    path.write_text(json.dumps(values))
    assert findings(dataset, sample=5) == ("PROBLEM      the weights random:1 are not those the dataset was made with")


def test_images_that_changed_or_went_are_left_out_of_the_sample_and_said(
    tmp_path: Path, photographs: dict[str, bytes]
) -> None:
    some = dict(list(photographs.items())[:4])
    write_photographs(tmp_path / "in", some)
    extract(str(tmp_path / "in"), str(tmp_path / "out"), load_extractor(MODEL, LIMITS), CUT)
    changed, gone, *_ = sorted((tmp_path / "in").iterdir())
    changed.write_bytes(photographs["rocket.jpg"])
    gone.unlink()
    said: list[str] = []
    assert verify(str(tmp_path / "out"), 10, LIMITS, STORAGE, said.append)
    assert f"skipped      {changed}: the object changed after it was extracted" in said
    assert any(line.startswith("skipped") and str(gone) in line for line in said)
    assert any("2 rows again by timm" in line for line in said)
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").mkdir()
    assert "no row of the sample could be compared" in findings(tmp_path / "out", sample=10)


def test_a_dataset_of_rejects_alone_is_good(tmp_path: Path) -> None:
    write_photographs(tmp_path / "in", {}, BAD)
    extract(str(tmp_path / "in"), str(tmp_path / "out"), load_extractor(MODEL, LIMITS), CUT)
    assert findings(tmp_path / "out", sample=10) == ""


def test_a_dataset_in_a_bucket_is_verified_like_one_in_a_folder(bucket: Bucket, photographs: dict[str, bytes]) -> None:
    bucket.fill({f"in/odd +%20 ü/{name}": data for name, data in [*photographs.items()][:6]} | {"in/bad.jpg": b"x"})
    extract(f"{bucket.url}/in", f"{bucket.url}/out", load_extractor(MODEL, LIMITS), CUT)
    said: list[str] = []
    assert verify(f"{bucket.url}/out", 10, LIMITS, STORAGE, said.append), said
    assert any("6 rows again by timm" in line for line in said)


def test_the_same_photographs_give_the_same_dataset_by_another_cut(
    pristine: Path, tmp_path: Path, photographs: dict[str, bytes]
) -> None:
    write_photographs(tmp_path / "in", photographs, BAD)
    extract(str(tmp_path / "in"), str(tmp_path / "out"), load_extractor(MODEL, LIMITS), Cut(1, 1, 1))

    def by_name(dest: Path) -> dict[str, list[float]]:
        rows = duckdb.sql(f"select uri, embedding from '{dest}/features/*.parquet'").fetchall()
        return {uri.rpartition("/")[2]: vector for uri, vector in rows}

    one, other = by_name(pristine), by_name(tmp_path / "out")
    assert one.keys() == other.keys()
    for name, vector in one.items():
        np.testing.assert_allclose(vector, other[name], rtol=0, atol=1e-5, err_msg=name)
    assert findings(tmp_path / "out") == ""


def test_every_reader_reads_the_features_as_they_are(pristine: Path, photographs: dict[str, bytes]) -> None:
    arrow = pa.dataset.dataset(pristine / "features", format="parquet").to_table()
    field = arrow.schema.field("embedding")
    assert pa.types.is_fixed_size_list(field.type)
    assert (field.type.value_type, field.type.list_size) == (pa.float32(), 64)
    expected = dict(zip(arrow["uri"].to_pylist(), vectors(arrow).tolist(), strict=True))
    assert {uri.rpartition("/")[2] for uri in expected} == set(photographs)

    by_duckdb = duckdb.sql(f"select uri, embedding from '{pristine}/features/*.parquet'").fetchall()
    assert dict(by_duckdb) == expected

    by_pandas = pd.read_parquet(pristine / "features")
    assert {row.uri: row.embedding.tolist() for row in by_pandas.itertuples()} == expected

    by_polars = pl.read_parquet(pristine / "features/*.parquet")
    assert by_polars.schema["embedding"] == pl.Array(pl.Float32, 64)
    assert dict(zip(by_polars["uri"], by_polars["embedding"].to_list(), strict=True)) == expected


def test_the_rejects_say_where_and_why(pristine: Path) -> None:
    rows = duckdb.sql(f"select uri, stage, error, message from '{pristine}/rejects/*.parquet'").fetchall()
    found = {uri.rpartition("/")[2]: (stage, error) for uri, stage, error, message in rows if message}
    assert found["zz-empty.jpg"] == ("decode", "Empty")
    assert found["zz-text.png"] == ("decode", "NotAnImage")
    assert found["zz-short.jpg"][0] == "decode"
