from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.commit import build_chunk, commit_chunk, encode
from pipeline.errors import RejectError
from pipeline.local import LocalStore
from pipeline.schema import embedding_field

DIM = 3
FIELD = embedding_field(DIM)


def embeddings(numbers: list[int]) -> pa.Array:
    values = np.repeat(np.array(numbers, np.float32), DIM)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), type=FIELD.type)


def chunk(goods: list[bool]) -> pa.Table:
    numbers = range(len(goods))
    outcomes = [
        (number + 1, number + 2) if good else RejectError("decode", "Corrupt", f"because {number}")
        for number, good in enumerate(goods)
    ]
    good = [number for number in numbers if goods[number]]
    return build_chunk(
        [f"u{n}" for n in numbers], [f"v{n}" for n in numbers], outcomes, {"embedding": embeddings(good)}, [FIELD]
    )


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_every_input_row_gives_one_row_with_its_features_or_its_reject(goods: list[bool]) -> None:
    stored = pq.read_table(io.BytesIO(encode(chunk(goods))))
    for number, (row, good) in enumerate(zip(stored.to_pylist(), goods, strict=True)):
        assert (row["uri"], row["etag"]) == (f"u{number}", f"v{number}")
        features = (row["width"], row["height"], row["embedding"])
        reject = (row["stage"], row["error"], row["message"])
        if good:
            assert features == (number + 1, number + 2, [number] * DIM)
            assert reject == (None, None, None)
        else:
            assert features == (None, None, None)
            assert reject == ("decode", "Corrupt", f"because {number}")


def test_the_columns_have_plain_arrow_types_also_where_all_is_rejected() -> None:
    for goods in ([True, False], [False, False]):
        types = [(field.name, str(field.type)) for field in pq.read_table(io.BytesIO(encode(chunk(goods)))).schema]
        assert types == [
            ("uri", "string"),
            ("etag", "string"),
            ("width", "int32"),
            ("height", "int32"),
            ("embedding", "fixed_size_list<element: float>[3]"),
            ("stage", "string"),
            ("error", "string"),
            ("message", "string"),
        ]


def test_a_chunk_is_one_row_group_and_the_same_bytes_each_time(tmp_path: object) -> None:
    table = chunk([True] * 5)
    assert pq.ParquetFile(io.BytesIO(encode(table))).num_row_groups == 1
    store = LocalStore(str(tmp_path))
    written = commit_chunk(store, 3, 7, table)
    (item,) = store.list_objects()
    assert (item.key, item.size) == ("_raysight/chunks/shard-000003/00007.parquet", written)
    first = store.get(item.key)
    commit_chunk(store, 3, 7, chunk([True] * 5))
    assert store.get(item.key) == first
    assert len(list(store.list_objects())) == 1


def test_a_chunk_of_many_rows_ends_where_its_file_does() -> None:
    table = chunk([True] * 5000)
    data = encode(table)
    assert data.endswith(b"PAR1")
    assert pq.read_table(io.BytesIO(data)).equals(table)


def test_no_rows_are_a_file_with_the_columns_all_the_same() -> None:
    table = chunk([True]).slice(0, 0)
    assert pq.read_table(io.BytesIO(encode(table))).equals(table)


def test_features_are_stored_as_they_are_and_only_what_one_searches_by_has_statistics() -> None:
    group = pq.ParquetFile(io.BytesIO(encode(chunk([True, False] * 10)))).metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"UNCOMPRESSED"}
    assert not any(column.has_dictionary_page for column in columns.values())
    searched = {name for name, column in columns.items() if column.is_stats_set}
    assert searched == {"uri", "etag", "width", "height", "stage", "error", "message"}


def test_kept_columns_of_another_length_are_refused() -> None:
    kept = pa.table({"caption": ["one"]})
    with pytest.raises(ValueError, match="1 rows of kept columns for 2 uris"):
        build_chunk(["u"] * 2, ["v"] * 2, [(1, 1)] * 2, {"embedding": embeddings([0, 1])}, [FIELD], kept)


@pytest.mark.parametrize(
    ("rows", "etags", "outcomes", "features", "message"),
    [
        (2, 2, 1, 1, "2 uris, 2 etags and 1 outcomes"),
        (2, 1, 2, 2, "2 uris, 1 etags and 2 outcomes"),
        (2, 2, 2, 1, "1 values of embedding for 2 images"),
        (2, 2, 2, 3, "3 values of embedding for 2 images"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(rows: int, etags: int, outcomes: int, features: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_chunk(
            ["u"] * rows, ["v"] * etags, [(1, 1)] * outcomes, {"embedding": embeddings(list(range(features)))}, [FIELD]
        )
