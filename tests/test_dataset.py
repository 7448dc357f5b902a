from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import FINGERPRINT, numbers

from pipeline.config import ModelConfig
from pipeline.cut import Cut
from pipeline.dataset import agree_on, count_rejects, load_info
from pipeline.errors import NotFoundError, UsageError
from pipeline.footer import read_footer, read_footers
from pipeline.local import LocalStore
from pipeline.schema import DATASET

if TYPE_CHECKING:
    from pathlib import Path

MODEL = ModelConfig(name="resnet18", weights="random:7", precision="bf16")


def test_a_description_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    dest = LocalStore(str(tmp_path))
    assert load_info(dest) is None
    agree_on(dest, FINGERPRINT, MODEL)
    info = load_info(dest)
    assert info is not None
    assert (info.fingerprint, info.model) == (FINGERPRINT, MODEL)


def test_a_description_says_how_large_the_model_is_where_that_was_recorded(tmp_path: Path) -> None:
    dest = LocalStore(str(tmp_path))
    agree_on(dest, FINGERPRINT, MODEL, parameters=22_056_576)
    info = load_info(dest)
    assert info is not None
    assert info.parameters == 22_056_576
    early = {name: value for name, value in json.loads(dest.get(DATASET)).items() if name != "parameters"}
    dest.put(DATASET, json.dumps(early).encode())
    assert load_info(dest) == replace(info, parameters=None)


def test_the_first_description_stays(tmp_path: Path) -> None:
    dest = LocalStore(str(tmp_path))
    agree_on(dest, FINGERPRINT, MODEL)
    agree_on(dest, FINGERPRINT, replace(MODEL, weights="elsewhere.safetensors"))
    info = load_info(dest)
    assert info is not None
    assert info.model == MODEL


def test_another_fingerprint_is_refused_with_what_differs(tmp_path: Path) -> None:
    dest = LocalStore(str(tmp_path))
    agree_on(dest, FINGERPRINT, MODEL)
    other = replace(FINGERPRINT, precision="bf16", weights="others")
    with pytest.raises(UsageError) as refusal:
        agree_on(dest, other, MODEL)
    text = str(refusal.value)
    assert "weights: none → others" in text
    assert "precision: fp32 → bf16" in text
    assert "preset" not in text
    assert FINGERPRINT.digest in text
    assert other.digest in text


def test_rejects_are_counted_over_all_shards(tmp_path: Path) -> None:
    dataset = numbers(LocalStore(str(tmp_path)), 20, Cut(3, 1000, 7), rejected=(0, 1, 5, 6, 19))
    assert count_rejects(dataset.dest) == 0
    for shard in range(len(dataset.manifest.shards)):
        dataset.commit_all(shard)
        dataset.seal(shard)
    assert count_rejects(dataset.dest) == 5


@pytest.mark.parametrize("groups", [1, 20, 2000], ids=lambda groups: f"{groups} row groups")
def test_a_footer_is_read_from_the_end_however_long_it_is(tmp_path: Path, groups: int) -> None:
    table = pa.table({f"column-{number}": range(groups) for number in range(5)})
    pq.write_table(table, tmp_path / "file.parquet", row_group_size=1)
    found = read_footer(LocalStore(str(tmp_path)), "file.parquet")
    assert found.equals(pq.read_metadata(tmp_path / "file.parquet"))
    assert (found.num_rows, found.num_row_groups) == (groups, groups)


def test_many_footers_come_in_order_and_only_the_ends_are_read(tmp_path: Path) -> None:
    read: list[int] = []

    class Counting(LocalStore):
        def get(self, key: str) -> bytes:
            raise AssertionError("read as a whole")

        def get_tail(self, key: str, size: int) -> bytes:
            data = super().get_tail(key, size)
            read.append(len(data))
            return data

    store = Counting(str(tmp_path))
    for rows in range(1, 9):
        columns = {"x": pa.array(range(rows * 100_000), pa.int64())}
        pq.write_table(pa.table(columns), tmp_path / f"{rows:02d}", compression="none", use_dictionary=False)
    keys = sorted(path.name for path in tmp_path.iterdir())
    assert [footer.num_rows for footer in read_footers(store, keys)] == [rows * 100_000 for rows in range(1, 9)]
    assert max(read) <= 64 << 10


def test_what_has_no_footer_is_an_error(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    with pytest.raises(NotFoundError):
        read_footer(store, "missing")
    for data in (b"", b"PAR1", b"not parquet at all", b"\xff" * 100_000):
        store.put("broken", data)
        with pytest.raises(pa.ArrowInvalid):
            read_footer(store, "broken")
