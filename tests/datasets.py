"""Datasets without Ray: the protocol of a job run in this process, and chunks made of numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.actor import ChunkWorker, WorkerConfig
from pipeline.commit import build_chunk, commit_chunk
from pipeline.config import ImageLimits, ModelConfig, SourceConfig, StorageConfig
from pipeline.cut import Cut
from pipeline.dataset import agree_on
from pipeline.errors import RejectError
from pipeline.fingerprint import Fingerprint
from pipeline.generation import Listing, write_generation
from pipeline.located import Located
from pipeline.manifest import Manifest, ManifestReader
from pipeline.origin import roots
from pipeline.preprocess import PreprocessConfig
from pipeline.read import read_chunk
from pipeline.schema import MANIFEST_SCHEMA, embedding_field
from pipeline.seal import clean_up, seal_shard
from pipeline.source import kept_fields, list_rows, source_names
from pipeline.storage import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.extractor import Extractor

MODEL = ModelConfig(name="test_vit", weights="random:0", precision="fp32")
"""timm's own model for tests: 160 px, a millisecond an image, 64 values."""

LIMITS = ImageLimits()
STORAGE = StorageConfig()

CROPS = PreprocessConfig(
    height=32,
    width=32,
    crop_pct=1.0,
    crop_mode="center",
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    implementation="fast",
)
"""Small ones from the centre."""

WORKER = WorkerConfig(
    batch_size=4, decode_threads=2, forward_streams=2, forward_threads=1, decode_timeout_s=60, poison_attempts=3
)
"""Of a machine with two cores."""

DIM = 4
FINGERPRINT = Fingerprint(
    model="numbers",
    weights="none",
    preset="timm",
    transform="none",
    implementation="reference",
    precision="fp32",
    outputs=(f"embedding: float32[{DIM}]",),
)
"""Of the datasets made by :func:`write_numbers`."""


def extract(source_url: str, dest_url: str, extractor: Extractor, cut: Cut, keep: tuple[str, ...] = ()) -> Manifest:
    """What a job does, one chunk after another: list, read, extract, commit, seal, clean up."""
    source, dest = Located(roots([source_url]), STORAGE), open_store(dest_url, STORAGE)
    listing = SourceConfig(keep=keep)
    agree_on(dest, extractor.fingerprint, MODEL, kept_fields([source_url], listing, STORAGE))
    names = source_names([source_url], STORAGE)
    manifest = write_generation(dest, None, Listing(names), list_rows([source_url], listing, STORAGE), cut)
    worker = ChunkWorker(extractor, dest, WORKER)
    reader = ManifestReader(dest)
    for shard, listed in enumerate(manifest.shards):
        for chunk in range(len(listed.chunks)):
            worker.process(read_chunk(reader, source, shard, chunk, LIMITS.max_bytes))
        seal_shard(dest, shard, listed, extractor.fingerprint)
    clean_up(dest, set(range(len(manifest.shards))))
    return manifest


def listed(folder: Path, dest: Store, cut: Cut) -> Manifest:
    """The manifest of a folder's images."""
    root = open_store(str(folder), STORAGE).root
    return write_generation(dest, None, Listing((root,)), list_rows([root]), cut)


def only_chunk(folder: Path, dest: Path, max_bytes: int = 1 << 20) -> pa.Table:
    """All images of a folder as the one chunk of a new dataset, read."""
    store = open_store(str(dest), STORAGE)
    listed(folder, store, Cut(1000, 1 << 26, 1000))
    return read_chunk(ManifestReader(store), open_store(str(folder), STORAGE), 0, 0, max_bytes)


@dataclass(frozen=True, slots=True)
class Numbers:
    """A dataset whose features are made of the row's number: a manifest, and what its chunks must hold."""

    dest: Store
    manifest: Manifest
    rejected: frozenset[int]

    def commit(self, shard: int, chunk: int, *, salt: float = 0.0) -> None:
        """Commits one chunk; a ``salt`` gives other values, as a zombie on another device would."""
        rows = ManifestReader(self.dest).chunk(shard, chunk)
        numbers = [int(uri.rpartition("-")[2]) for uri in rows["uri"].to_pylist()]
        commit_chunk(self.dest, shard, chunk, numbers_chunk(rows, numbers, self.rejected, salt))

    def commit_all(self, shard: int) -> None:
        """Commits all chunks of a shard."""
        for chunk in range(len(self.manifest.shards[shard].chunks)):
            self.commit(shard, chunk)

    def seal(self, shard: int, dest: Store | None = None) -> None:
        """Seals a shard, through another store if one is given."""
        seal_shard(dest or self.dest, shard, self.manifest.shards[shard], FINGERPRINT)


def numbers(dest: Store, rows: int, cut: Cut, rejected: Sequence[int] = ()) -> Numbers:
    """A dataset of ``rows`` rows with a manifest and nothing else."""
    agree_on(dest, FINGERPRINT, ModelConfig())
    columns = [[f"/nowhere/image-{n}" for n in range(rows)], [10] * rows, [f"v{n}" for n in range(rows)]]
    listed = [("/nowhere/", pa.record_batch(columns, schema=MANIFEST_SCHEMA))]
    manifest = write_generation(dest, None, Listing(("/nowhere/",)), listed, cut)
    return Numbers(dest, manifest, frozenset(rejected))


def vector(number: int, salt: float = 0.0) -> list[float]:
    """The features of a row."""
    return [number + salt, number / 2, 1.0, -number]


def numbers_chunk(rows: pa.Table, numbers: Sequence[int], rejected: frozenset[int], salt: float) -> pa.Table:
    """The chunk of these manifest rows."""
    outcomes = [
        RejectError("decode", "Corrupt", f"row {number}") if number in rejected else (number + 1, 2)
        for number in numbers
    ]
    good = np.array([vector(number, salt) for number in numbers if number not in rejected], np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(good.reshape(-1), pa.float32()), DIM)
    field = embedding_field(DIM)
    return build_chunk(
        rows["uri"].to_pylist(), rows["etag"].to_pylist(), outcomes, {"embedding": column.cast(field.type)}, [field]
    )


def write_photographs(folder: Path, photographs: dict[str, bytes], bad: dict[str, bytes] | None = None) -> None:
    """Photographs, and other files, as files of one folder."""
    folder.mkdir(parents=True)
    for name, data in {**photographs, **(bad or {})}.items():
        (folder / name).write_bytes(data)


class FailingStore:
    """A store whose process dies at its n-th write: that one and all later calls raise.

    Args:
        store: the store behind it.
        writes: how many writes go through.
        torn: whether the write that fails is carried out all the same (the answer is lost).
        below: only writes and deletions of objects whose name begins so are counted.
    """

    class DiedError(Exception):
        """Not an error that anything would handle."""

    def __init__(self, store: Store, writes: int, *, torn: bool = False, below: str = "") -> None:
        self._store = store
        self._left = writes
        self._torn = torn
        self._below = below
        self._dead = False

    def __getattr__(self, name: str) -> Callable[..., object]:
        value = getattr(self._store, name)
        if not callable(value):
            return value

        def call(*arguments: object, **options: object) -> object:
            if self._dead:
                raise self.DiedError
            if name in ("put", "put_file", "put_if_absent", "replace_file", "delete") and self._counts(arguments[0]):
                if self._left == 0:
                    self._dead = True
                    if self._torn:
                        value(*arguments, **options)
                    raise self.DiedError
                self._left -= 1
            return value(*arguments, **options)

        return call

    def _counts(self, keys: object) -> bool:
        names = [keys] if isinstance(keys, str) else keys
        return any(str(name).startswith(self._below) for name in names)  # type: ignore[attr-defined]
