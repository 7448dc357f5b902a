"""What a dry run says of a dataset that there is already: how far it is, and what a job would find to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from datasets import LIMITS, MODEL, extract, write_photographs

from pipeline.cut import Cut
from pipeline.extractor import load_extractor
from serve.cli import main

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = ("--model", MODEL.name, "--weights", MODEL.weights, "--precision", MODEL.precision)


@pytest.fixture
def photos(tmp_path: Path, photographs: dict[str, bytes]) -> Path:
    """Five photographs, extracted into a shard of four and one of one."""
    folder = tmp_path / "in"
    write_photographs(folder, dict(list(photographs.items())[:5]))
    extract(str(folder), str(tmp_path / "out"), load_extractor(MODEL, LIMITS), Cut(2, 1 << 26, 4))
    return folder


def dry_run(photos: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The lines that are said; nothing is written, below the dataset or beside it."""
    before = {path: path.stat().st_mtime_ns for path in photos.parent.rglob("*")}
    assert main(["extract", str(photos), f"{photos.parent}/out", *OPTIONS, "--dry-run", *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in photos.parent.rglob("*")} == before
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_of_a_settled_dataset_it_says_what_has_changed_since(
    photos: Path, photographs: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = sorted(photos.iterdir())
    first.write_bytes(second.read_bytes())
    second.unlink()
    (photos / "new.jpg").write_bytes(photographs["rocket.jpg"])
    said = dry_run(photos, capsys)
    assert f"dest {photos.parent}/out/: 5 of 5 images done, as listed at" in said
    assert any(line.endswith(", 2 of 2 shards sealed") for line in said)
    assert f"source {photos}/: 5 images: 1 new, 1 changed" in said
    assert "gone from the source: 1; --prune drops their rows" in said
    assert "gone from the source: 1; their rows are dropped" in dry_run(photos, capsys, "--prune")


def test_of_a_dataset_that_was_broken_off_it_says_how_far_it_is(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "out/features/shard-000000.parquet").unlink()
    said = dry_run(photos, capsys)
    assert f"dest {photos.parent}/out/: 1 of 5 images done, as listed at" in said
    assert any(line.endswith(", 1 of 2 shards sealed") for line in said)
    assert f"source {photos}/: listed again once the 2 chunks to do are done" in said
