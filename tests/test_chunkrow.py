"""A chunk on its way to an actor, encoded or decoded: the same images, rejects and figures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import jobs
import numpy as np
import pytest
from datasets import CROPS, only_chunk

from pipeline.chunkrow import decode_row, decode_rows, images
from pipeline.config import ImageLimits
from pipeline.errors import RejectError
from pipeline.prepared import Prepared
from pipeline.preprocess import Preprocessor
from pipeline.read import CHUNK_ROW_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

CONFIG = replace(CROPS, height=48)
PREPROCESSOR = Preprocessor(CONFIG, ImageLimits())


@pytest.fixture
def row(tmp_path: Path, photographs: Mapping[str, bytes]) -> pa.Table:
    """Six images: the second cannot be read, the fourth is none."""
    paths = jobs.write_corpus(tmp_path / "photos", photographs, 6)
    paths[1].write_bytes(bytes(200_000))
    paths[3].write_bytes(b"no image")
    return only_chunk(tmp_path / "photos", tmp_path / "out", max_bytes=100_000)


def prepared(row: pa.Table) -> list[Prepared | RejectError]:
    """What an actor makes of the images of a row as it comes."""
    found: list[Prepared | RejectError] = []
    for item in images(row):
        try:
            found.append(PREPROCESSOR.prepare(item) if isinstance(item, memoryview) else item)
        except RejectError as reject:
            found.append(reject)
    return found


def test_a_decoded_chunk_holds_what_an_actor_would_have_decoded(row: pa.Table) -> None:
    decoded = decode_row(row, PREPROCESSOR)
    assert decoded.schema == CHUNK_ROW_SCHEMA
    found, expected = list(images(decoded)), prepared(row)
    kinds = [type(item) for item in expected]
    assert kinds.count(Prepared) == 4
    assert [type(item) for item in found] == kinds
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, Prepared):
            assert isinstance(other, Prepared)
            np.testing.assert_array_equal(one.pixels, other.pixels)
            assert (one.width, one.height) == (other.width, other.height)
        else:
            assert isinstance(one, RejectError)
            assert isinstance(other, RejectError)
            assert one.args == other.args


def test_what_identifies_the_chunk_and_what_was_read_stay(row: pa.Table) -> None:
    decoded = decode_row(row, PREPROCESSOR)
    for name in ("shard", "chunk", "uri", "etag", "kept", "bytes_read", "read_seconds", "requests"):
        assert decoded[name].equals(row[name])
    size = sum(len(data) for data in row["data"][0].as_py() if data is not None)
    assert row["bytes_read"][0].as_py() == size > 0
    assert decoded["prepare_cpu_seconds"][0].as_py() > 0
    assert decoded["data"][0].as_py() == [None] * 6


def test_a_chunk_without_a_good_image_decodes_to_rejects_alone(row: pa.Table) -> None:
    strict = Preprocessor(CONFIG, ImageLimits(max_pixels=1))
    found = list(images(decode_row(row, strict)))
    assert [type(item) for item in found] == [RejectError] * 6


def test_a_chunk_that_killed_its_decoders_is_handed_on_as_it_is(row: pa.Table) -> None:
    calls: list[str] = []

    def begin(shard: int, chunk: int) -> bool:
        calls.append(f"begin {shard}/{chunk}")
        return calls.count("begin 0/0") > 1

    def end(shard: int, chunk: int) -> None:
        calls.append(f"end {shard}/{chunk}")

    first, second = decode_rows([row, row], PREPROCESSOR, begin, end)
    assert first.equals(row)
    assert second["shape"][0].as_py() == [48, 32, 3]
    assert calls == ["begin 0/0", "begin 0/0", "end 0/0"]


def test_a_chunk_counts_as_decoded_before_an_actor_can_begin_it(row: pa.Table) -> None:
    ended: list[tuple[int, int]] = []
    rows = decode_rows([row, row], PREPROCESSOR, lambda *_: True, lambda *where: ended.append(where))
    next(rows)
    assert ended == [(0, 0)]
