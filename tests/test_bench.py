from __future__ import annotations

import argparse
import importlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pytest
from PIL import Image

from pipeline.bench import formats, limit, peers
from pipeline.bench.cli import add_commands
from pipeline.bench.corpus import LARGE_SIZES, photographs, write_corpus, write_large, write_tiny
from pipeline.bench.daft_venv import daft_python
from pipeline.bench.object_server import serving
from pipeline.bench.runner import measure
from pipeline.bench.suite import Bench, Suite
from pipeline.bench.suites import SUITES, limits
from pipeline.bench.suites.feed import Case, measure_feed
from pipeline.bench.suites.memory import jobs
from pipeline.bench.table import ratios, render, slope, spread
from pipeline.config import StorageConfig
from pipeline.errors import RaysightError, RejectError
from pipeline.storage import open_store
from pipeline.store import Fetched

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIMEOUT_S = 600.0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def source(work: Path) -> Path:
    return write_corpus(work, 24, distinct=8)


def _embeddings(dest: Path) -> dict[str, NDArray[np.float32]]:
    rows = duckdb.sql(f"select uri, embedding from '{dest}/**/*.parquet'").fetchall()
    return {Path(uri).name: np.array(values, np.float32) for uri, values in rows}


# ---- corpus


def test_the_corpus_is_of_photographs_as_described_and_the_same_each_time() -> None:
    first, second = list(photographs(6)), list(photographs(6))
    assert first == second
    assert len(set(first)) == 6
    for data in first:
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
        assert 40_000 <= len(data) <= 60_000


def test_the_corpus_repeats_its_photographs_under_as_many_names_as_asked_for(source: Path) -> None:
    files = sorted(source.iterdir())
    assert len(files) == 24
    assert len({path.read_bytes() for path in files}) == 8
    assert len({path.stat().st_ino for path in files}) == 24, "files of their own, not links"


def test_a_corpus_that_is_there_is_not_written_again(source: Path, work: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in source.iterdir()}
    assert write_corpus(work, 24, distinct=8) == source
    assert {path: path.stat().st_mtime_ns for path in source.iterdir()} == times


@pytest.mark.parametrize("size", LARGE_SIZES)
def test_large_photographs_have_their_size_and_the_bytes_of_real_ones(size: tuple[int, int], tmp_path: Path) -> None:
    files = sorted(write_large(tmp_path, 2, size).iterdir())
    for path in files:
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", size)
        assert 0.15 < path.stat().st_size / (size[0] * size[1]) < 0.5, "bytes a pixel; a real one has 0.2 to 0.4"
    assert len({path.read_bytes() for path in files}) == 2


def test_the_object_server_answers_as_a_bucket_does(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(source) as (_, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = open_store("s3://bench/", StorageConfig())
        listed = {item.key: item for item in store.list_objects()}
        assert listed.keys() == {path.name for path in source.iterdir()}
        names = [*sorted(listed), "gone.jpg"]
        *found, gone = store.fetch_many(names, 1 << 20)
    for name, answer in zip(names, found, strict=False):
        assert isinstance(answer, Fetched)
        assert answer.data == (source / name).read_bytes()
        assert answer.version == listed[name].version
    assert isinstance(gone, RejectError)
    assert gone.error == "NotFound"


def test_gets_are_counted_on_both_sides(source: Path) -> None:
    answer = measure("bare:gets", {"folder": str(source), "passes": 1}, timeout_s=TIMEOUT_S)
    for figures in (answer["alone"], answer["raysight"]):
        assert figures["rate"] > 0
        assert figures["client"] > 0


def test_the_floating_point_operations_of_the_default_model_are_counted() -> None:
    # By hand: the linear layers of 1,370 tokens, and attention among them; two operations for a product and a sum.
    tokens, dim, blocks = 1370, 384, 12
    linear = 2 * tokens * dim * (4 * dim + 8 * dim)
    attention = 2 * 2 * tokens * tokens * dim
    patches = 2 * (tokens - 1) * dim * 3 * 14 * 14
    answer = measure("bare:gemm", {"size": 64, "seconds": 0.1}, timeout_s=TIMEOUT_S)
    assert answer["flops"] == pytest.approx(blocks * (linear + attention) + patches, rel=0.01)
    assert answer["fp32"] > 0


def test_every_way_to_store_an_embedding_reads_back_and_has_a_size(source: Path) -> None:
    answer = formats.ways(str(source), images=2, rows=64)
    assert answer["float16, plain"]["bytes"] < answer["float32, plain"]["bytes"]
    for figures in answer.values():
        assert figures["bytes"] > 384 * 2 * 0.5


def test_limits_are_a_line_for_each_stage_with_its_fraction() -> None:
    half = {"alone": {"client": 100.0}, "raysight": {"client": 200.0}}
    results = {
        "gets": [half],
        "pixels": [{stage: {"alone": 1.0, "raysight": 2.0} for stage in ("decode", "resize")}],
        "prepare": [{"steady": 600.0}],
        "gemm": [{"fp32": 200.0, "bf16": 100.0, "flops": 5e10}],
        "forward": [{"steady": 3.0}],
        "parquet": [{"alone": 100.0, "raysight": 25.0}],
    }
    fractions = {line[0]: line[3] for line in limits.rows(results)}
    assert fractions["object GETs (obstore), a core"] == "0.50"
    assert fractions["matrix product fp32; forward"] == "0.75"
    assert fractions["Parquet write; commit of a chunk"] == "0.25"
    assert fractions["decode and resize, all cores"] == ""


def test_tiny_files_are_images_with_names_of_their_own(tmp_path: Path) -> None:
    files = [path for path in write_tiny(tmp_path, 1205).rglob("*") if path.is_file()]
    assert len(files) == 1205
    assert len({path.parent for path in files}) == 2
    (data,) = {path.read_bytes() for path in files}
    assert Image.open(io.BytesIO(data)).size == (1, 1)


# ---- the limit and the peers do the work they are compared by


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_the_limit_prepares_on_every_core(kind: str, source: Path) -> None:
    answer = measure(f"limit:{kind}", {"source": str(source), "images": 8}, timeout_s=TIMEOUT_S)
    assert answer["steady"] > 0
    assert limit.preprocessor().prepare(next(source.iterdir()).read_bytes()).pixels.shape == (518, 518, 3)


@pytest.fixture(scope="module")
def feed(work: Path, source: Path) -> tuple[Path, dict[str, Any]]:
    """The folder that ``raysight bench feed`` worked in, and its figures."""
    count = len(list(source.iterdir()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.bench.suites.feed.daft_python", lambda _: None)  # it would be downloaded
        return work, measure_feed(Bench(work), Case(images=count, peer_images=count))


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_raysight_and_its_peers_write_the_same_features(feed: tuple[Path, dict[str, Any]], source: Path) -> None:
    # The oracle is timm's own transform. Two levels of 255, over the least standard deviation.
    transform = peers.timm_transform()
    expected = {
        path.name: transform(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))[0, 0, :384].numpy()
        for path in source.iterdir()
    }
    tolerance = 2 / 255 / 0.224 + 1e-4
    work, _ = feed
    for dest in (
        work / "raysight" / "features",
        work / "raysight-bucket" / "features",
        work / "guide",
        work / "dataloader",
    ):
        found = _embeddings(dest)
        assert found.keys() == expected.keys()
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=tolerance, err_msg=f"{dest} {name}")


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_feed_keeps_the_figures_of_every_measurement(feed: tuple[Path, dict[str, Any]]) -> None:
    answer = json.loads(json.dumps(feed[1]))
    assert set(answer["results"]) == {
        "limit, threads",
        "limit, processes",
        "raysight",
        "raysight, from a bucket",
        "Ray Data, as its guide",
        "torch DataLoader",
    }
    assert answer["limit"].startswith("limit")
    for (figures,) in answer["results"].values():
        assert figures["steady"] > 0
    for name in ("raysight", "Ray Data, as its guide", "torch DataLoader"):
        (figures,) = answer["results"][name]
        assert figures["images"] == 24
        assert 0 < figures["first_s"] <= figures["whole_s"]
        assert figures["whole"] > 0


@pytest.mark.soak
def test_daft_sees_the_same_crop_by_another_filter(work: Path, source: Path) -> None:
    python = daft_python(work)
    assert python is not None, "Daft is downloaded; this needs the network"
    arguments = {"source": str(source), "dest": str(work / "daft-out"), "images": 24, "python": python}
    assert measure("peers:daft", arguments, timeout_s=TIMEOUT_S)["images"] == 24
    transform = peers.timm_transform()
    for name, values in _embeddings(work / "daft-out").items():
        expected = transform(Image.open(io.BytesIO((source / name).read_bytes())).convert("RGB"))[0, 0, :384].numpy()
        assert np.abs(values - expected).mean() < 0.2


# ---- forward, memory, and the command


def test_the_bare_loop_runs_a_model_over_all_batches(source: Path) -> None:
    model = {"name": "test_vit", "weights": "random:0", "precision": "fp32"}
    arguments = {"source": str(source), "images": 5, "batch_size": 2, "streams": 2, "model": model}
    answer = measure("forward:loop", arguments, timeout_s=TIMEOUT_S)
    assert answer["steady"] > 0


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_memory_shows_rows_chunks_and_the_driver_at_each_size(tmp_path: Path) -> None:
    lines: list[str] = []
    answer = jobs(Bench(tmp_path, say=lines.append), [(60, 5)])
    (job,) = answer["results"]
    assert (job["rows"], job["images"], job["rejects"]) == (60, 60, 0)
    assert all(mib > 1 for _, mib in job["memory"])
    assert max(done for done, _ in job["memory"]) <= 60
    assert [cell.strip() for cell in lines[-1].splitlines()[-1].split("|")[1:3]] == ["60", "12"]


def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    arguments = {"source": str(tmp_path / "nowhere"), "images": 4}
    with pytest.raises(RaysightError, match="nowhere"):
        measure("limit:threads", arguments, timeout_s=TIMEOUT_S)


def _noting_suite(bench: Bench) -> dict[str, Any]:
    """Stands for a suite of another package."""
    return {"full": bench.full, "work": bench.work.name}


NOTING = Suite("noting", "notes what it is given", "test_bench:_noting_suite")
LENGTHY = Suite("lengthy", "has a quick form of minutes", "test_bench:_noting_suite", by_name=True)


def _bench(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(), [NOTING, LENGTHY])
    options = parser.parse_args(["bench", *arguments])
    code: int = options.run(options)
    return code


def test_a_suite_from_elsewhere_is_run_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    assert _bench("noting", "--full", "--work", str(tmp_path / "here"), "--output", str(output)) == 0
    assert json.loads(output.read_text()) == {"noting": {"full": True, "work": "here"}}
    assert "## noting: notes what it is given" in capsys.readouterr().out


def test_the_form_is_the_quick_one_unless_asked(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    _bench("noting", "--output", str(output))
    assert json.loads(output.read_text())["noting"]["full"] is False


@pytest.mark.parametrize(("arguments", "ran"), [([], {"noting"}), (["--full"], {"noting", "lengthy"})])
def test_a_lengthy_suite_is_left_out_of_the_quick_form_unless_named(
    arguments: list[str], ran: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.bench.cli.SUITES", ())
    output = tmp_path / "figures.json"
    _bench(*arguments, "--output", str(output))
    assert json.loads(output.read_text()).keys() == ran
    _bench("lengthy", "--output", str(output))
    assert json.loads(output.read_text()).keys() == {"lengthy"}


def test_a_suite_that_is_none_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _bench("speed")
    error = capsys.readouterr().err
    assert "there is no suite speed" in error
    assert "feed, forward" in error


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_suite_is_where_it_says(suite: Suite) -> None:
    module, _, function = suite.where.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


# ---- the table


def test_ratios_are_taken_within_each_round() -> None:
    assert ratios([10.0, 30.0], [5.0, 10.0]) == [2.0, 3.0]


def test_a_spread_is_the_median_and_the_range() -> None:
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0–3.0)"
    assert spread([1234.5], 0) == "1,234"


def test_the_slope_is_that_of_the_least_squares_line() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, 6.0)]
    assert slope(points) == pytest.approx(np.polyfit(*zip(*points, strict=True), 1)[0])
    assert slope([(1.0, 5.0), (1.0, 7.0)]) == 0.0


def test_a_table_is_markdown_with_numbers_on_the_right() -> None:
    assert render(["what", "n"], [["a", "1"], ["bcdef", "22"]]) == (
        "| what  |  n |\n| ----- | -: |\n| a     |  1 |\n| bcdef | 22 |"
    )


def test_a_table_says_how_many_rounds_there_were(tmp_path: Path) -> None:
    quick, full = Bench(tmp_path), Bench(tmp_path, full=True)
    assert quick.conditions().endswith(", quick form, one round")
    assert full.conditions().endswith(", 3 rounds: median (range)")
    assert full.conditions(rounds=1).endswith(", one round")
