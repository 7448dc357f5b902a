"""The job from end to end, on a real local Ray: what a user sees, and what lies at DEST afterwards."""

from __future__ import annotations

import io
import json
import os
import signal
from typing import TYPE_CHECKING

import jobs
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from stubs import POISON

from pipeline.lease import Lease
from pipeline.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SMALL = {"chunk_rows": 8, "shard_rows": 32, "shard_bytes": 1 << 30}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, bytes]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    jobs.write_corpus(folder, photographs, 100)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, str]:
    """A dataset made without any trouble, and what the job printed."""
    dest = tmp_path_factory.mktemp("undisturbed") / "out"
    code, output = jobs.run("extract", corpus, dest, *jobs.MODEL, settings={"job": SMALL})
    assert code == 0, output
    return dest, output


def test_every_image_has_one_row_equal_to_timms(undisturbed: tuple[Path, str], corpus: Path) -> None:
    dest, _ = undisturbed
    found = jobs.features(dest)
    assert found.keys() == {str(path) for path in corpus.rglob("*.jpg")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit").eval()
    model.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    for path in sorted(corpus.rglob("*.jpg"))[::10]:
        with torch.inference_mode():
            expected = model(transform(Image.open(path)).unsqueeze(0))[0].numpy()
        mine = found[str(path)]
        assert mine @ expected / np.linalg.norm(mine) / np.linalg.norm(expected) >= 0.9999


def test_the_job_ends_with_its_figures(undisturbed: tuple[Path, str]) -> None:
    figures = jobs.last_line(undisturbed[1])
    assert (figures["rows"], figures["rejects"], figures["skipped"]) == (100, 0, 0)
    assert figures["images_per_second"] > 0


def test_nothing_but_the_dataset_is_left(undisturbed: tuple[Path, str]) -> None:
    dest, _ = undisturbed
    names = sorted(str(path.relative_to(dest)) for path in dest.rglob("*") if path.is_file())
    runs = [name for name in names if name.startswith("_raysight/run-")]
    assert len(runs) == 1
    assert [name for name in names if name not in runs] == [
        "_raysight/dataset.json",
        *(f"_raysight/manifest/{name}" for name in ["committed.json", *(f"shard-00000{n}.parquet" for n in range(4))]),
        *(f"features/shard-00000{number}.parquet" for number in range(4)),
    ]


def test_the_run_is_on_record(undisturbed: tuple[Path, str]) -> None:
    (path,) = undisturbed[0].glob("_raysight/run-*.json")
    run = json.loads(path.read_text())
    assert (run["images"], run["rows"], run["chunks"], run["outcome"]) == (100, 100, 13, "complete")
    assert run["forward_seconds"] > 0
    assert run["prepare_cpu_seconds"] > 0


def test_the_description_counts_the_models_parameters(undisturbed: tuple[Path, str]) -> None:
    model = timm.create_model("test_vit", num_classes=0)
    description = json.loads((undisturbed[0] / "_raysight/dataset.json").read_text())
    assert description["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_report_has_its_figures_without_ray(undisturbed: tuple[Path, str]) -> None:
    code, output = jobs.run("report", undisturbed[0], "--format", "json", "--dollars-per-hour", "3.6")
    assert code == 0, output
    (run,) = json.loads(output)["runs"]
    assert (run["rows"], run["rejects"], run["outcome"], run["actors"]) == (100, 0, "complete", 1)
    assert run["dollars_per_million_images"] == pytest.approx(1000 / run["images_per_second"], rel=1e-3)
    # Each image was read and each chunk written, sealed and deleted; each of four shards was put.
    assert run["requests"]["get"] >= 100 + 13
    assert run["requests"]["put"] >= 13 + 4
    assert run["requests"]["delete"] >= 4
    assert all(stage["cpu_ms_per_image"] > 0 for stage in run["stages"].values())
    assert all(0 < fraction <= 1 for fraction in run["busy"].values())


def test_verify_agrees(undisturbed: tuple[Path, str]) -> None:
    code, output = jobs.run("verify", undisturbed[0], "--sample", "8")
    assert code == 0, output
    assert "100 features + 0 rejects" in output
    assert "sample" in output


def test_a_rerun_does_nothing_and_starts_no_ray(undisturbed: tuple[Path, str], corpus: Path) -> None:
    dest, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in dest.rglob("*") if path.is_file()}
    code, output = jobs.run("extract", corpus, dest, *jobs.MODEL, settings={"job": SMALL})
    assert code == 0, output
    assert jobs.last_line(output) == {"rows": 0, "rejects": 0, "skipped": 100, "images_per_second": 0}
    assert "starting Ray" not in output
    assert {path: path.stat().st_mtime_ns for path in dest.rglob("*") if path.is_file()} == before


def test_another_fingerprint_is_refused_with_the_differences(undisturbed: tuple[Path, str], corpus: Path) -> None:
    options = ("--model", "test_vit", "--weights", "random:1", "--implementation", "reference", "--precision", "fp32")
    code, output = jobs.run("extract", corpus, undisturbed[0], *options)
    assert code == 2
    assert "implementation: fast → reference" in output
    assert "weights: " in output
    assert "model: " not in output


def test_a_source_that_is_not_there_is_refused(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    code, output = jobs.run("extract", tmp_path / "nowhere", undisturbed[0], *jobs.MODEL)
    assert code == 2
    assert "there is no folder" in output


def test_pruning_what_a_limit_cut_off_is_refused(undisturbed: tuple[Path, str], corpus: Path) -> None:
    code, output = jobs.run("extract", corpus, undisturbed[0], *jobs.MODEL, "--prune", "--limit", "3")
    assert code == 2
    assert "--prune with --limit would drop everything beyond the limit" in output


def test_a_job_killed_at_any_moment_is_finished_by_the_next(
    tmp_path: Path, corpus: Path, undisturbed: tuple[Path, str]
) -> None:
    dest = tmp_path / "out"
    settings = {"factory": "slow", "job": SMALL}
    moments = {
        "a committed chunk": lambda: jobs.chunks(dest),
        "a sealed shard": lambda: list(dest.glob("features/*.parquet")),
        "three sealed shards": lambda: len(list(dest.glob("features/*.parquet"))) >= 3,
    }
    for what, condition in moments.items():
        process = jobs.start("extract", corpus, dest, *jobs.MODEL, settings=settings)
        jobs.until(condition, process, what)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.communicate()
    code, output = jobs.run("extract", corpus, dest, *jobs.MODEL, settings=settings)
    assert code == 0, output
    assert "taking over from a dead job" in output
    assert jobs.last_line(output)["skipped"] > 0
    jobs.assert_same(jobs.features(dest), jobs.features(undisturbed[0]))
    code, output = jobs.run("verify", dest, "--sample", "4")
    assert code == 0, output


def test_killed_workers_cost_nothing(tmp_path: Path, corpus: Path, undisturbed: tuple[Path, str]) -> None:
    dest = tmp_path / "out"
    process = jobs.start("extract", corpus, dest, *jobs.MODEL, settings={"factory": "slow", "job": SMALL})
    jobs.until(lambda: jobs.chunks(dest), process, "a committed chunk")
    (actor,) = jobs.until(lambda: jobs.workers(process, "ray::MapWorker"), process, "an actor")
    for reader in jobs.workers(process, "ray::ReadChunks"):
        reader.kill()
    actor.kill()
    code, output = jobs.finish(process)
    assert code == 0, output
    jobs.assert_same(jobs.features(dest), jobs.features(undisturbed[0]))


def test_sigterm_commits_what_is_in_flight_and_the_next_run_goes_on(
    tmp_path: Path, corpus: Path, undisturbed: tuple[Path, str]
) -> None:
    dest = tmp_path / "out"
    settings = {"factory": "slow", "job": SMALL}
    process = jobs.start("extract", corpus, dest, *jobs.MODEL, settings=settings)
    jobs.until(lambda: jobs.chunks(dest), process, "a committed chunk")
    process.send_signal(signal.SIGTERM)
    code, output = jobs.finish(process)
    assert code == 4, output
    assert "The same command goes on from there" in output
    done = jobs.last_line(output)["rows"]
    assert 0 < done < 100
    assert not (dest / "_raysight/lease.json").exists()
    code, output = jobs.run("extract", corpus, dest, *jobs.MODEL, settings=settings)
    assert code == 0, output
    assert jobs.last_line(output)["skipped"] == done
    jobs.assert_same(jobs.features(dest), jobs.features(undisturbed[0]))


def test_a_second_job_on_the_same_destination_is_refused(tmp_path: Path, corpus: Path) -> None:
    """The first one is this process, which holds what a job holds while it is at work."""
    dest = tmp_path / "out"
    with Lease(LocalStore(str(dest)), 600, print):
        code, output = jobs.run("extract", corpus, dest, *jobs.MODEL, settings={"job": SMALL})
        assert [path.name for path in dest.rglob("*") if path.is_file()] == ["lease.json"]
    assert code == 2
    assert f"in use by another job (process {os.getpid()} on " in output


def test_bad_files_among_good_ones_are_all_accounted_for(
    tmp_path: Path, photographs: Mapping[str, bytes], poisonous_jpeg: bytes
) -> None:
    source, dest = tmp_path / "photos", tmp_path / "out"
    good = jobs.write_corpus(source, photographs, 60)
    whole = good[0].read_bytes()
    expected: dict[str, tuple[str, str]] = {}
    for number in range(10):
        for name, content, verdict in [
            ("empty", b"", ("decode", "Empty")),
            ("text", b"this is no image %d" % number, ("decode", "NotAnImage")),
            ("cut", whole[: len(whole) // 2 + number], ("decode", "Truncated")),
            ("header", whole[: 20 + number], ("decode", "NotAnImage")),
        ]:
            path = source / f"{name}-{number}.jpg"
            path.write_bytes(content)
            expected[str(path)] = verdict
        path = source / f"bomb-{number}.png"
        Image.new("1", (20_000, 20_000)).save(path)
        expected[str(path)] = ("decode", "TooManyPixels")
    path = source / "poison.jpg"
    path.write_bytes(poisonous_jpeg)
    expected[str(path)] = ("decode", "WorkerDied")

    settings = {"factory": "poisoned", "job": {"chunk_rows": 16}}
    code, output = jobs.run("extract", source, dest, *jobs.MODEL, settings=settings)

    assert code == 3, output  # 51 of 111 is more than the rate allows by default
    assert "51 of 111 images were rejected" in output
    found = {uri: (stage, error) for uri, (stage, error, _) in jobs.rejects(dest).items()}
    unidentified = {uri for uri in found if "header-" in uri}
    assert {uri: verdict for uri, verdict in found.items() if uri not in unidentified} == {
        uri: verdict for uri, verdict in expected.items() if uri not in unidentified
    }
    assert len(unidentified) == 10
    assert all(message for _, _, message in jobs.rejects(dest).values())
    assert jobs.features(dest).keys() == {str(path) for path in good}
    allowed = ("--max-reject-rate", "0.5")
    code, output = jobs.run("extract", source, dest, *jobs.MODEL, *allowed, settings=settings)
    assert code == 0, output


@pytest.fixture
def poisonous_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG", comment=POISON)
    return buffer.getvalue()


def test_more_actors_than_fit_are_scaled_down_and_the_job_runs(tmp_path: Path, corpus: Path) -> None:
    options = ("--cpus-per-actor", "1", "--max-actors", "64", "--min-actors", "64", "--limit", "16")
    code, output = jobs.run("extract", corpus, tmp_path / "out", *jobs.MODEL, *options, settings={"job": SMALL})
    assert code == 0, output
    assert "--max-actors 64 scaled down to" in output
    assert len(jobs.features(tmp_path / "out")) == 16


def test_a_commit_that_arrives_after_the_reruns_listing_changes_nothing(
    tmp_path: Path, corpus: Path, undisturbed: tuple[Path, str]
) -> None:
    dest = tmp_path / "out"
    settings = {"factory": "slow", "job": SMALL}
    process = jobs.start("extract", corpus, dest, *jobs.MODEL, settings=settings)
    jobs.until(lambda: len(jobs.chunks(dest)) >= 2, process, "two committed chunks")
    jobs.kill_tree(process)
    process.communicate()
    late = jobs.chunks(dest)[-1]
    content = late.read_bytes()
    late.unlink()  # as if its PUT were still on the way

    process = jobs.start("extract", corpus, dest, *jobs.MODEL, settings=settings)
    jobs.until(lambda: jobs.workers(process, "ray::MapWorker"), process, "an actor, so after the listing")
    late.write_bytes(content)
    code, output = jobs.finish(process)
    assert code == 0, output
    late.parent.mkdir(parents=True, exist_ok=True)
    late.write_bytes(content)  # and once more, when its shard is sealed

    jobs.assert_same(jobs.features(dest), jobs.features(undisturbed[0]))
    code, output = jobs.run("verify", dest, "--sample", "2")
    assert code == 0, output
    code, output = jobs.run("extract", corpus, dest, *jobs.MODEL, settings=settings)
    assert (code, jobs.last_line(output)["rows"]) == (0, 0)
    assert not jobs.chunks(dest)
    jobs.assert_same(jobs.features(dest), jobs.features(undisturbed[0]))
