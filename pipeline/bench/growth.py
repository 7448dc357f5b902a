"""What each step of a job costs beside reading and computing, at a number of rows; in a process of its own each."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import schema
from pipeline.bench.resident import resident_mib
from pipeline.bench.synthetic import CHANGED_EVERY, numbered_rows, real_rows, write_features
from pipeline.config import JobConfig
from pipeline.cut import Cut
from pipeline.generation import Listing
from pipeline.inspection import check_structure, open_dataset
from pipeline.local import LocalStore
from pipeline.manifest import load_manifest
from pipeline.plan import Plan, waves
from pipeline.sync import Sync, sync_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_ROWS = 256

_JOB = JobConfig()
_CUT = Cut(CHUNK_ROWS, _JOB.chunk_bytes, _JOB.shard_rows, _JOB.shard_chunks)
_SAMPLE_S = 0.02


def listing(dest: str, rows: int, source: str | None = None) -> dict[str, Any]:
    """From the source to a committed manifest, of a new dataset. ``source``: a folder of files instead of names alone.

    Returns:
        As every measurement here: ``seconds``; ``cpu_seconds``, of all threads, which other processes disturb less;
        ``mib``: what the process's own memory grew by, at most.
    """
    shutil.rmtree(dest, ignore_errors=True)
    store = LocalStore(dest)
    name, batches = real_rows(Path(source)) if source else numbered_rows(rows)
    with _measured() as figures:
        manifest = sync_manifest(store, None, _sync(name), batches, _CUT, _silent)
    assert manifest.rows == rows
    return figures


def plan(dest: str) -> dict[str, Any]:
    """From the committed manifest to the first chunks handed out, with nothing done."""
    with _beside(dest, "nothing") as store:
        return _plan(store, 0)


def resume(dest: str) -> dict[str, Any]:
    """The same after a crash at half, at its worst: half of every shard is committed, and none is sealed."""
    manifest = load_manifest(LocalStore(dest))
    assert manifest is not None
    with _beside(dest, "half") as store:
        done = 0
        for shard, listed in enumerate(manifest.shards):
            for chunk in range(len(listed.chunks) // 2):
                path = Path(store.root, schema.chunk_object(shard, chunk))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                done += listed.chunks[chunk]
        return _plan(store, done)


def verify(dest: str) -> dict[str, Any]:
    """``raysight verify --sample 0``; seals zeros first where the dataset is a manifest alone."""
    store = LocalStore(dest)
    manifest = load_manifest(store)
    assert manifest is not None
    if not next(store.list_objects(schema.FEATURES_FOLDER), None):
        write_features(store, manifest)
    with _measured() as figures:
        report = check_structure(store, *open_dataset(store))
    assert not report.problems, report.problems[0]
    assert report.rows == manifest.rows
    return figures


def sync(dest: str, rows: int, source: str | None = None, *, changed: bool = False) -> dict[str, Any]:
    """The source listed again and compared with the dataset; ``changed``: one name in a hundred has a new version."""
    store = LocalStore(dest)
    manifest = load_manifest(store)
    assert manifest is not None
    name, batches = real_rows(Path(source)) if source else numbered_rows(rows, changed=changed)
    with _measured() as figures:
        renewed = sync_manifest(store, manifest, _sync(name), batches, _CUT, _silent)
    assert (renewed.last.rows if renewed is not manifest else 0) == (-(-rows // CHANGED_EVERY) if changed else 0)
    return figures


def _sync(name: str) -> Sync:
    return Sync(Listing((name,)), prune=False, memory=_JOB.listing_memory)


def _plan(store: LocalStore, done: int) -> dict[str, Any]:
    with _measured() as figures:
        manifest = load_manifest(store)
        assert manifest is not None
        survey = Plan.survey(store, manifest)
        assert survey.rows_done == done
        assert not survey.sealable() or manifest.rows <= CHUNK_ROWS
        first = next(waves(survey.pending(), _JOB.wave_chunks), [])
    assert first
    return {**figures, "chunks": manifest.chunks}


@contextmanager
def _beside(dest: str, name: str) -> Iterator[LocalStore]:
    """A dataset with the same manifest and nothing else, for as long as the block runs."""
    folder = Path(f"{dest}-{name}")
    shutil.rmtree(folder, ignore_errors=True)
    marker = folder / schema.MANIFEST_MARKER
    marker.parent.mkdir(parents=True)
    shutil.copy(Path(dest, schema.MANIFEST_MARKER), marker)
    (folder / schema.FEATURES_FOLDER).mkdir()
    yield LocalStore(str(folder))
    shutil.rmtree(folder)


@contextmanager
def _measured() -> Iterator[dict[str, Any]]:
    figures: dict[str, Any] = {}
    before = most = resident_mib()
    over = threading.Event()

    def sample() -> None:
        nonlocal most
        while not over.wait(_SAMPLE_S):
            most = max(most, resident_mib())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    start, cpu = time.monotonic(), time.process_time()
    yield figures
    figures.update(seconds=time.monotonic() - start, cpu_seconds=time.process_time() - cpu)
    over.set()
    sampler.join()
    figures["mib"] = max(most, resident_mib()) - before


def _silent(_: str) -> None:
    """Says nothing."""
