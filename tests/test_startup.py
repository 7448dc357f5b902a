"""What a command does not wait for: modules that take seconds to import stay out where they are of no use."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import datasets
import jobs
import pyarrow as pa
import pytest

from pipeline.budget import make_budget
from pipeline.cluster import Node
from pipeline.config import Config, ImageLimits, JobConfig, ModelConfig, StorageConfig
from pipeline.cut import Cut
from pipeline.dataset import DatasetInfo
from pipeline.errors import UsageError
from pipeline.extractor import load_extractor
from pipeline.identity import Identity, load, recorded
from pipeline.schema import DATASET
from pipeline.worker import ExtractActor, JobSpec
from serve.cli import main

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SLOW = ("torch", "timm", "torchvision", "ray")
"""Seconds each, on a machine with nothing else to do."""

PROGRAM = """
import json, os, sys
from serve.cli import main
if os.environ.get("TEST_GPUS"):  # what NVIDIA's library says of this machine
    from pipeline import gpus
    gpus._DEVICES = ("/",)
    gpus._ask_nvml = lambda: int(os.environ["TEST_GPUS"])
try:
    code = main(sys.argv[2:])
except SystemExit as end:
    code = end.code
print(json.dumps([code, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]), flush=True)
os._exit(0)  # as raysight does
"""


def imported(*arguments: str | Path, gpus: int = 0) -> tuple[int, str, list[str]]:
    """Exit code, output, and which of the slow modules ``raysight`` imported."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(SLOW), *map(str, arguments)]
    env = jobs.environment() | ({"TEST_GPUS": str(gpus)} if gpus else {})
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd="/", timeout=280)
    assert done.returncode == 0, done.stderr
    *output, last = done.stdout.splitlines()
    code, found = json.loads(last)
    return code, "\n".join(output), found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, bytes]) -> tuple[Path, Path]:
    """A source, and a dataset of it that a job completed."""
    folder = tmp_path_factory.mktemp("finished")
    jobs.write_corpus(folder / "corpus", photographs, 12)
    extractor = load_extractor(datasets.MODEL, ImageLimits())
    datasets.extract(str(folder / "corpus"), str(folder / "out"), extractor, Cut(4, 1 << 20, 8))
    return folder / "corpus", folder / "out"


@pytest.mark.parametrize(
    "arguments", [("--help",), ("extract", "--help"), ("bench", "--help"), ("config",)], ids=" ".join
)
def test_help_and_settings_import_nothing_slow(arguments: tuple[str, ...]) -> None:
    code, output, found = imported(*arguments)
    assert code == 0
    assert output
    assert found == []


def test_a_job_that_has_nothing_to_do_imports_nothing_slow(finished: tuple[Path, Path]) -> None:
    code, output, found = imported("extract", *finished, *jobs.MODEL)
    assert code == 0
    assert jobs.last_line(output)["skipped"] == 12
    assert found == []


def test_memory_is_declared_for_the_model_that_the_dataset_speaks_of(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, dest = finished[0], tmp_path / "out"
    shutil.copytree(finished[1], dest)
    description = dest / DATASET
    description.write_text(json.dumps(json.loads(description.read_text()) | {"parameters": 10**12}))
    assert main(["extract", str(source), str(dest), *jobs.MODEL]) == 2
    assert re.search(r"no node can hold an actor of .* and \d{5}\.\d GiB", capsys.readouterr().err)


def test_a_new_dataset_whose_chunks_fit_no_actor_is_refused_before_it_is_described(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another try with less would be told of features that nobody has extracted."""
    monkeypatch.setenv("RAYSIGHT_JOB_CHUNK_ROWS", str(10**10))
    monkeypatch.setenv("RAYSIGHT_JOB_CHUNK_FEATURE_BYTES", str(10**15))
    assert main(["extract", str(finished[0]), str(tmp_path / "out"), *jobs.MODEL]) == 2
    assert "no node can hold an actor of" in capsys.readouterr().err
    assert not (tmp_path / "out" / DATASET).exists()


def test_verify_without_a_sample_imports_nothing_slow(finished: tuple[Path, Path]) -> None:
    code, output, found = imported("verify", finished[1], "--sample", "0")
    assert code == 0
    assert "12 features + 0 rejects" in output
    assert found == []


@pytest.mark.ray
def test_the_driver_of_a_new_dataset_loads_no_model_itself(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Nor what counts GPUs, on a machine that has one (and does without it here, since Ray finds none)."""
    code, output, found = imported(
        "extract", finished[0], tmp_path / "out", *jobs.MODEL, "--gpus-per-actor", "0", gpus=1
    )
    assert code == 0
    assert jobs.last_line(output)["rows"] == 12
    assert found == ["ray"]


def test_a_new_dataset_s_model_that_does_not_exist_is_refused_with_nothing_written(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    code, _, _ = imported("extract", finished[0], tmp_path / "out", "--model", "no_such_model")
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused_although_there_is_nothing_to_do(finished: tuple[Path, Path]) -> None:
    code, _, found = imported("extract", *finished, *jobs.MODEL, "--weights", "random:1")
    assert code == 2
    assert "ray" not in found


def test_weights_that_have_changed_under_their_name_are_refused_by_every_actor(tmp_path: Path) -> None:
    budget = make_budget(JobConfig(), [Node(2, 0, 1 << 33)], can_grow=False)
    others = replace(load_extractor(datasets.MODEL, ImageLimits()).fingerprint, weights="those of before")
    factory = functools.partial(load, datasets.MODEL, ImageLimits(), StorageConfig())
    config = Config((str(tmp_path),), str(tmp_path / "out"), model=datasets.MODEL)
    actor = ExtractActor(JobSpec(config, budget, others, factory, preprocessor=None), coordinator=None)
    with pytest.raises(UsageError, match="not the job's: weights: those of before → "):
        actor(pa.table({}))


# ---- when the dataset can be believed

MODEL = ModelConfig(name="test_vit", weights="random:0", precision="bf16")
INFO = DatasetInfo(datasets.FINGERPRINT, MODEL)


@pytest.mark.parametrize("asked", [MODEL, replace(MODEL, precision="auto")], ids=["the same", "auto"])
def test_the_same_settings_are_known_without_loading(asked: ModelConfig) -> None:
    assert recorded(asked, INFO, on_gpu=False) == Identity(MODEL, datasets.FINGERPRINT, INFO.parameters)


@pytest.mark.parametrize(
    "asked",
    [
        replace(MODEL, weights="random:1"),
        replace(MODEL, precision="fp32"),
        replace(MODEL, features=("embedding", "classes")),
        replace(MODEL, image_size=224),
    ],
    ids=["weights", "precision", "features", "image_size"],
)
def test_other_settings_are_not(asked: ModelConfig) -> None:
    assert recorded(asked, INFO, on_gpu=False) is None


def test_a_new_dataset_knows_nothing() -> None:
    assert recorded(MODEL, None, on_gpu=False) is None


@pytest.mark.parametrize("files", [{"weights": "/models/own.safetensors"}, {"head": "/models/head.pth"}], ids=str)
def test_a_file_may_have_changed_under_its_name(files: dict[str, str]) -> None:
    model = replace(MODEL, **files)
    assert recorded(model, DatasetInfo(datasets.FINGERPRINT, model), on_gpu=False) is None


@pytest.mark.parametrize("on_gpu", [True, False])
def test_fp16_is_left_to_the_check_of_devices_where_there_is_no_gpu(on_gpu: bool) -> None:
    model = replace(MODEL, precision="fp16")
    found = recorded(model, DatasetInfo(datasets.FINGERPRINT, model), on_gpu=on_gpu)
    assert (found is not None) == on_gpu
