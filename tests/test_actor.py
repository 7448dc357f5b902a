"""What a worker makes of a chunk, without Ray: order, batches, rejects, and what it refuses to write."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jobs
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from datasets import WORKER, only_chunk

from pipeline.actor import ChunkWorker, WorkerConfig
from pipeline.chunk_result import ChunkResult
from pipeline.chunkrow import decode_row, images
from pipeline.config import ImageLimits, ModelConfig, StorageConfig
from pipeline.errors import InterruptedJobError
from pipeline.extractor import Extractor, load_extractor
from pipeline.preflight import until
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return load_extractor(ModelConfig("test_vit", "random:0", precision="fp32"), ImageLimits())


@pytest.fixture
def row(tmp_path: Path, photographs: Mapping[str, bytes]) -> pa.Table:
    """A chunk of ten images, the fourth of which is no image."""
    paths = jobs.write_corpus(tmp_path / "photos", photographs, 10)
    sorted(paths)[3].write_bytes(b"no image")
    return only_chunk(tmp_path / "photos", tmp_path / "out")


def process(
    extractor: Extractor, row: pa.Table, folder: Path, config: WorkerConfig = WORKER, attempt: int = 1
) -> tuple[ChunkResult, list[dict[str, Any]]]:
    worker = ChunkWorker(extractor, open_store(str(folder), StorageConfig()), config)
    result = worker.process(row, attempt)
    return result, pq.read_table(folder / "_raysight/chunks/shard-000000/00000.parquet").to_pylist()


def test_rows_come_in_the_order_of_the_manifest_each_with_its_own_vector(
    extractor: Extractor, row: pa.Table, tmp_path: Path
) -> None:
    result, rows = process(extractor, row, tmp_path / "out")
    assert [item["uri"] for item in rows] == row["uri"][0].as_py()
    assert (result.rows, result.rejects) == (10, {"NotAnImage": 1})
    assert [bool(item["error"]) for item in rows] == [index == 3 for index in range(10)]
    for item, data in zip(rows, row["data"][0].as_py(), strict=True):
        if item["error"]:
            assert item["embedding"] is None
            continue
        alone = extractor.forward([extractor.prepare(data).pixels])["embedding"][0]
        np.testing.assert_allclose(item["embedding"], alone, rtol=0, atol=1e-5)


def test_with_two_batches_in_hand_as_on_a_gpu_the_rows_are_the_same(
    extractor: Extractor, row: pa.Table, tmp_path: Path
) -> None:
    _, expected = process(extractor, row, tmp_path / "a")
    config = replace(WORKER, batch_size=2, forward_streams=1, forward_depth=2)
    _, found = process(extractor, row, tmp_path / "b", config)
    assert_same_rows(found, expected)


def test_a_chunk_that_a_task_has_decoded_gives_the_same_rows_and_counts(
    extractor: Extractor, row: pa.Table, tmp_path: Path
) -> None:
    plain, expected = process(extractor, row, tmp_path / "a")
    decoded, found = process(extractor, decode_row(row, extractor.preprocessor), tmp_path / "b")
    assert_same_rows(found, expected)
    for name in ("rows", "rejects", "bytes_read", "requests"):
        assert getattr(decoded, name) == getattr(plain, name)
    assert decoded.prepare_seconds > 0


def assert_same_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        vector, wanted = one.pop("embedding"), other.pop("embedding")
        assert one == other
        if wanted is not None:
            np.testing.assert_allclose(vector, wanted, rtol=0, atol=1e-5)


def test_the_bytes_of_a_chunk_lie_so_that_libjpeg_turbo_takes_them(row: pa.Table) -> None:
    items = list(images(row))
    for index, data in enumerate(row["data"][0].as_py()):
        if index != 3:
            np.testing.assert_array_equal(simplejpeg.decode_jpeg(items[index]), simplejpeg.decode_jpeg(data))


def test_a_chunk_that_killed_its_workers_is_decoded_elsewhere_with_the_same_result(
    extractor: Extractor, row: pa.Table, tmp_path: Path
) -> None:
    _, expected = process(extractor, row, tmp_path / "a")
    result, found = process(extractor, row, tmp_path / "b", attempt=4)
    assert found == expected
    assert result.attempt == 4


class Overflowing(Extractor):
    """Gives infinity for the second image of every batch, as fp16 does when a model overflows."""

    def forward(self, batch: Sequence[np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        features = super().forward(batch)
        features["embedding"][1:2, 0] = np.inf
        return features


def test_a_chunk_says_what_lack_of_memory_left_of_its_batches(
    extractor: Extractor, row: pa.Table, tmp_path: Path
) -> None:
    config = replace(WORKER, batch_size=4)
    plain, expected = process(extractor, row, tmp_path / "a", config)
    small = load_extractor(ModelConfig("test_vit", "random:0", precision="fp32"), ImageLimits())
    compute = small.passes._compute

    def of_two_at_most(pixels: torch.Tensor) -> Mapping[str, torch.Tensor]:
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return compute(pixels)

    small.passes._compute = of_two_at_most
    halved, found = process(small, row, tmp_path / "b", config)
    assert (plain.batch_size, plain.batch_left) == (4, 4)
    assert (halved.batch_size, halved.batch_left) == (4, 2)
    assert_same_rows(found, expected)


def test_what_is_not_finite_is_rejected_and_the_others_keep_their_vectors(
    row: pa.Table, tmp_path: Path, extractor: Extractor
) -> None:
    _, expected = process(extractor, row, tmp_path / "a")
    overflowing = load_extractor(ModelConfig("test_vit", "random:0", precision="fp32"), ImageLimits())
    overflowing.__class__ = Overflowing
    result, rows = process(overflowing, row, tmp_path / "b")
    assert result.rejects == {"NotAnImage": 1, "NotFinite": 2}
    assert [item["uri"] for item in rows] == [item["uri"] for item in expected]
    lost = [index for index, item in enumerate(rows) if item["error"] == "NotFinite"]
    assert lost == [1, 6]  # the second of the batches (0, 1, 2, 4) and (5, 6, 7, 8); (9,) has none
    for index, item in enumerate(rows):
        if index not in lost:
            assert item["embedding"] == expected[index]["embedding"]


def test_a_result_survives_its_way_through_a_table(extractor: Extractor, row: pa.Table, tmp_path: Path) -> None:
    result, _ = process(extractor, row, tmp_path / "out")
    assert ChunkResult.from_row(result.to_table().to_pylist()[0]) == result


def test_a_listing_that_is_asked_to_stop_stops() -> None:
    stop = threading.Event()
    objects = until(stop, iter([1, 2, 3]))  # type: ignore[arg-type]
    assert next(objects) == 1
    stop.set()
    with pytest.raises(InterruptedJobError, match="lists anew"):
        next(objects)
