"""Columns of a table of URIs, from the table to features and rejects, and through a whole job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import LIMITS, MODEL, extract

from pipeline.config import SourceConfig, StorageConfig
from pipeline.cut import Cut
from pipeline.dataset import agree_on
from pipeline.errors import UsageError
from pipeline.extractor import load_extractor
from pipeline.source import kept_fields
from pipeline.storage import open_store
from pipeline.verify import verify

if TYPE_CHECKING:
    from pathlib import Path


CUT = Cut(chunk_rows=2, chunk_bytes=1 << 30, shard_rows=4)


@pytest.fixture
def table(tmp_path: Path, photographs: dict[str, bytes]) -> Path:
    """Two photographs, a file that is none, and one that is not there, with captions and tags."""
    for name in ("chelsea.png", "coffee.png"):
        (tmp_path / name).write_bytes(photographs[name])
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    columns = {
        "path": ["coffee.png", "broken.jpg", "gone.jpg", "chelsea.png"],
        "caption": ["a cup", "nothing", None, "a cat"],
        "tags": [["hot", "black"], [], None, ["soft"]],
    }
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def captions(dest: Path, folder: str) -> dict[str, Any]:
    rows = duckdb.sql(f"select uri, caption, tags from '{dest}/{folder}/*.parquet'").fetchall()
    return {uri.rpartition("/")[2]: (caption, tags) for uri, caption, tags in rows}


def test_they_reach_features_and_rejects_and_verify_holds_them_to_the_manifest(table: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    extract(str(table), str(dest), load_extractor(MODEL, LIMITS), CUT, keep=("caption", "tags"))
    assert captions(dest, "features") == {"coffee.png": ("a cup", ["hot", "black"]), "chelsea.png": ("a cat", ["soft"])}
    assert captions(dest, "rejects") == {"broken.jpg": ("nothing", []), "gone.jpg": (None, None)}
    said: list[str] = []
    assert verify(str(dest), 4, LIMITS, StorageConfig(), said.append), said
    shard = next((dest / "features").iterdir())
    whole = pq.read_table(shard)
    changed = whole.set_column(2, whole.schema.field("caption"), pa.array(["a dog"] * len(whole)))
    pq.write_table(changed.replace_schema_metadata(whole.schema.metadata), shard)
    assert not verify(str(dest), 0, LIMITS, StorageConfig(), said.append)
    assert any("has other values in caption, tags than the manifest" in line for line in said)


@pytest.mark.parametrize("folder", ["features", "rejects"])
def test_a_shard_that_has_lost_a_kept_column_is_found(table: Path, tmp_path: Path, folder: str) -> None:
    dest = tmp_path / "out"
    extract(str(table), str(dest), load_extractor(MODEL, LIMITS), CUT, keep=("caption", "tags"))
    shard = min((dest / folder).iterdir())
    said_of_itself = pq.read_metadata(shard).metadata
    pq.write_table(pq.read_table(shard).drop_columns("tags").replace_schema_metadata(said_of_itself), shard)
    said: list[str] = []
    assert not verify(str(dest), 0, LIMITS, StorageConfig(), said.append)
    assert "PROBLEM      shard 0 should keep the columns caption: string, tags: list<string>" in said


def test_a_dataset_that_keeps_other_columns_is_refused_with_the_difference(table: Path, tmp_path: Path) -> None:
    dest, extractor = open_store(str(tmp_path / "out"), StorageConfig()), load_extractor(MODEL, LIMITS)
    kept, other = (
        kept_fields([str(table)], SourceConfig(keep=keep), StorageConfig()) for keep in (("caption",), ("tags",))
    )
    agree_on(dest, extractor.fingerprint, MODEL, kept)
    agree_on(dest, extractor.fingerprint, MODEL, kept)
    with pytest.raises(UsageError, match=r"caption: string → tags: list<.*use the same --keep"):
        agree_on(dest, extractor.fingerprint, MODEL, other)
