"""Wide rows stay within a stated multiple of their own bytes, from the model to the sealed shard.

Counted, not sampled: what Python and NumPy allocate (tracemalloc), and Arrow's pool. Both are the same on any machine.
"""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jobs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import WORKER, listed

from pipeline.actor import ChunkWorker
from pipeline.budget import make_budget
from pipeline.cluster import Node
from pipeline.config import ImageLimits, JobConfig, ModelConfig, StorageConfig
from pipeline.cut import Cut
from pipeline.dataset import DatasetInfo
from pipeline.extractor import Extractor, load_extractor
from pipeline.inspection import check_structure
from pipeline.manifest import Manifest, ManifestReader
from pipeline.preflight import largest_chunk, make_cut
from pipeline.read import read_chunk
from pipeline.schema import describe_output, patches_field, row_bytes
from pipeline.seal import seal_shard
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.storage import Store

ROWS, TOKENS, WIDTH = 40, 1369, 384
FIELD = patches_field(TOKENS, WIDTH)
FEATURES = (ROWS - 1) * row_bytes([FIELD])
CONFIG = replace(WORKER, batch_size=2)
COPIES = 3
"""What ``pipeline.memory`` counts with; the columns and the bytes of their file are two."""


class Wide(Extractor):
    """Tokens as wide as the default model's, of one number: the mean of the image."""

    outputs = (FIELD,)

    def forward(self, batch: Sequence[np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        means = np.array([image.mean() for image in batch], np.float16)
        return {"patches": np.ones((len(batch), TOKENS, WIDTH), np.float16) * means[:, None, None]}


class Peak:
    """Bytes allocated at most within :func:`peak`, beyond what was there before."""

    bytes = 0


@contextmanager
def peak() -> Iterator[Peak]:
    before, pool, found = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool()), Peak()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield found
        # The two need not peak at once: their sum is the worst there can be.
        found.bytes = tracemalloc.get_traced_memory()[1] + (pool.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


@pytest.fixture(scope="module")
def wide() -> Extractor:
    extractor = load_extractor(ModelConfig("test_vit", "random:0", precision="fp32"), ImageLimits())
    del extractor.outputs
    extractor.__class__ = Wide
    return extractor


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, bytes]) -> tuple[Store, Manifest, Any]:
    """A manifest of one chunk of ``ROWS`` images, the fifth of which is none; and the chunk as it is read."""
    folder = tmp_path_factory.mktemp("wide")
    paths = jobs.write_corpus(folder / "photos", photographs, ROWS)
    sorted(paths)[4].write_bytes(b"no image")
    source, dest = (open_store(str(folder / name), StorageConfig()) for name in ("photos", "out"))
    manifest = listed(folder / "photos", dest, Cut(ROWS, 1 << 26, 1000))
    return dest, manifest, read_chunk(ManifestReader(dest), source, 0, 0, 1 << 20)


def test_a_chunk_of_patch_tokens_takes_less_than_three_times_its_bytes_and_so_does_its_seal(
    wide: Extractor, dataset: tuple[Store, Manifest, Any], tmp_path: Path
) -> None:
    dest, manifest, row = dataset
    with peak() as chunk:
        result = ChunkWorker(wide, dest, CONFIG).process(row)
    assert result.rejects == {"NotAnImage": 1}
    assert FEATURES < chunk.bytes < COPIES * FEATURES
    with peak() as seal:
        seal_shard(dest, 0, manifest.shards[0], wide.fingerprint)
    assert FEATURES < seal.bytes < COPIES * FEATURES
    shard = tmp_path / "shard.parquet"
    dest.get_file("features/shard-000000.parquet", shard)
    table = pq.read_table(shard)
    assert table["uri"].to_pylist() == [uri for index, uri in enumerate(row["uri"][0].as_py()) if index != 4]
    for image, patches in zip((i for i in range(ROWS) if i != 4), table["patches"], strict=True):
        mean = wide.prepare(row["data"][0].as_py()[image]).pixels.mean()
        values = patches.values.flatten().to_numpy()
        assert values.shape == (TOKENS * WIDTH,)
        assert (values == np.float16(mean)).all()


def test_verify_holds_one_row_group_of_a_wide_shard_at_a_time(
    wide: Extractor, dataset: tuple[Store, Manifest, Any], tmp_path: Path
) -> None:
    source = open_store(dataset[1].shards[0].source, StorageConfig())
    dest, chunk = open_store(str(tmp_path), StorageConfig()), ROWS // 8
    manifest = listed(Path(source.root), dest, Cut(chunk, 1 << 26, 1000))
    worker = ChunkWorker(wide, dest, CONFIG)
    for number in range(8):
        worker.process(read_chunk(ManifestReader(dest), source, 0, number, 1 << 20))
    fingerprint = replace(wide.fingerprint, outputs=(describe_output(FIELD),))
    seal_shard(dest, 0, manifest.shards[0], fingerprint)
    with peak() as verify:
        report = check_structure(dest, DatasetInfo(fingerprint, ModelConfig()), manifest)
    assert (report.problems, report.rows, report.rejects) == ([], ROWS - 1, 1)
    assert verify.bytes < FEATURES / 3  # an eighth, and what Parquet takes beside a piece


def test_the_largest_chunk_is_that_of_the_cut_or_of_what_is_listed_already(
    wide: Extractor, dataset: tuple[Store, Manifest, Any]
) -> None:
    row = row_bytes([FIELD])
    assert largest_chunk(Cut(7, 1 << 26, 1000), wide.outputs, None) == 7 * row
    assert largest_chunk(Cut(7, 1 << 26, 1000), wide.outputs, dataset[1]) == ROWS * row
    assert largest_chunk(Cut(99, 1 << 26, 1000), wide.outputs, dataset[1]) == 99 * row


def test_the_features_of_a_chunk_follow_chunk_feature_bytes(wide: Extractor) -> None:
    for bound in (64 << 20, 16 << 20):
        job = JobConfig(chunk_feature_bytes=bound)
        budget = make_budget(job, [Node(2, 0, 8 << 30)], can_grow=False)
        features = largest_chunk(make_cut(job, budget, wide.outputs), wide.outputs, None)
        assert bound - row_bytes([FIELD]) < features <= bound
