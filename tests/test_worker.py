"""What an actor settles before its first chunk, without Ray."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import datasets
import jobs
import pytest

from pipeline import compiling, openvino_model, worker
from pipeline.budget import make_budget
from pipeline.chunk_result import ChunkResult
from pipeline.cluster import Node
from pipeline.config import Config, ImageLimits, JobConfig, ModelConfig
from pipeline.errors import RaysightError, UnavailableError, UsageError
from pipeline.extractor import load_extractor
from pipeline.worker import ExtractActor, JobSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


MODEL = ModelConfig("test_vit", "random:0", precision="fp32")


def spec(dest: Path, job: JobConfig, model: ModelConfig = MODEL) -> JobSpec:
    """A job with the budget of a GPU, whose actor finds a CPU."""
    config = Config((), str(dest), model=model, job=job)
    factory = partial(load_extractor, model, ImageLimits())
    budget = make_budget(job, [Node(2, 1, 8 << 30)], can_grow=False)
    extractor = factory()
    return JobSpec(config, budget, extractor.fingerprint, factory, extractor.preprocessor)


def test_an_actor_on_a_gpu_finds_its_batch_size_within_the_bound(tmp_path: Path) -> None:
    worker = ExtractActor._make_worker(spec(tmp_path, JobConfig(max_batch_size=4)))
    assert worker._config.batch_size in (1, 2, 4)
    assert worker._streams.in_hand == 2


def test_the_batch_size_that_was_found_goes_with_every_chunk(tmp_path: Path, photographs: Mapping[str, bytes]) -> None:
    jobs.write_corpus(tmp_path / "photos", photographs, 3)
    row = datasets.only_chunk(tmp_path / "photos", tmp_path / "out")
    worker = ExtractActor._make_worker(spec(tmp_path / "out", JobConfig(max_batch_size=8)))
    found = ChunkResult.from_row(worker.process(row).to_table().to_pylist()[0])
    assert found.batch_size == worker._config.batch_size > 0


def test_a_batch_size_that_is_given_is_taken(tmp_path: Path) -> None:
    worker = ExtractActor._make_worker(spec(tmp_path, JobConfig(batch_size=3, max_batch_size=2)))
    assert worker._config.batch_size == 3


def test_a_chunk_that_is_given_up_says_what_its_last_try_failed_with(
    tmp_path: Path, photographs: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.write_corpus(tmp_path / "photos", photographs, 3)
    row = datasets.only_chunk(tmp_path / "photos", tmp_path / "out")
    actor = ExtractActor(spec(tmp_path / "out", JobConfig(batch_size=2, task_retries=0)), SimpleNamespace(begin=None))
    attempts = iter([(1, False), (2, False)])
    monkeypatch.setattr(worker, "ask", lambda *_, **__: next(attempts))

    def fail(*_: object) -> None:
        raise UnavailableError("s3://bucket/chunk: InternalError")

    monkeypatch.setattr(actor._worker, "process", fail)
    with pytest.raises(UnavailableError):
        actor(row)
    with pytest.raises(RaysightError, match=r"begun 1 times and never committed; s3://bucket/chunk: InternalError$"):
        actor(row)


def test_a_model_that_cannot_be_compiled_ends_the_job_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(*_: object) -> object:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(openvino_model, "serves", lambda *_: False)  # this is what a GPU gets
    monkeypatch.setattr(compiling, "BACKEND", backend)
    actor = ExtractActor(spec(tmp_path, JobConfig(batch_size=2), replace(MODEL, compile=True)), None)
    assert isinstance(actor._refusal, UsageError)
    assert "C compiler" in str(actor._refusal)
