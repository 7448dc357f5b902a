"""What an actor settles before its first chunk, without Ray."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pipeline import compiling
from pipeline.budget import make_budget
from pipeline.cluster import Node
from pipeline.config import Config, ImageLimits, JobConfig, ModelConfig
from pipeline.errors import UsageError
from pipeline.extractor import load_extractor
from pipeline.worker import ExtractActor, JobSpec

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

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


def test_a_batch_size_that_is_given_is_taken(tmp_path: Path) -> None:
    worker = ExtractActor._make_worker(spec(tmp_path, JobConfig(batch_size=3, max_batch_size=2)))
    assert worker._config.batch_size == 3


def test_a_model_that_cannot_be_compiled_ends_the_job_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(*_: object) -> object:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(compiling, "BACKEND", backend)
    actor = ExtractActor(spec(tmp_path, JobConfig(batch_size=2), replace(MODEL, compile=True)), None)
    assert isinstance(actor._refusal, UsageError)
    assert "C compiler" in str(actor._refusal)
