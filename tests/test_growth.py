"""``raysight bench growth``: each step does what it is measured for, and the slopes are those of the figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from pipeline.bench import growth
from pipeline.bench.corpus import write_tiny
from pipeline.bench.plot import draw_growth
from pipeline.bench.suite import Bench
from pipeline.bench.suites.growth import Sizes, measure_growth, slopes_of
from pipeline.bench.synthetic import numbered_rows
from pipeline.local import LocalStore
from pipeline.manifest import load_manifest

ROWS = 1300


@pytest.fixture(scope="module")
def dest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A manifest of names alone."""
    folder = str(tmp_path_factory.mktemp("growth") / "out")
    growth.listing(folder, ROWS)
    return folder


def test_the_listing_streams_names_in_pages_with_versions_of_their_own() -> None:
    name, batches = numbered_rows(2500)
    pages = [batch for _, batch in batches]
    assert [len(page) for page in pages] == [1000, 1000, 500]
    rows = [row for page in pages for row in page.to_pylist()]
    assert len({row["uri"] for row in rows}) == len({row["etag"] for row in rows}) == 2500
    assert all(row["uri"].startswith(name) for row in rows)


def test_one_object_in_a_hundred_changes() -> None:
    before, after = (
        [row for _, page in numbered_rows(1000, changed=changed)[1] for row in page.to_pylist()]
        for changed in (False, True)
    )
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 10


def test_a_manifest_is_written_in_chunks_of_256(dest: str) -> None:
    manifest = load_manifest(LocalStore(dest))
    assert manifest is not None
    assert [shard.chunks for shard in manifest.shards] == [(256, 256, 256, 256, 256, 20)]


def test_every_step_answers_with_time_and_memory_and_leaves_no_second_dataset(dest: str) -> None:
    answers = [
        growth.plan(dest),
        growth.resume(dest),
        growth.verify(dest),
        growth.sync(dest, ROWS),
        growth.sync(dest, ROWS, changed=True),
    ]
    for answer in answers:
        assert answer["seconds"] > 0
        assert answer["cpu_seconds"] >= 0
        assert answer["mib"] >= 0
    assert [path.name for path in Path(dest).parent.iterdir()] == ["out"]
    manifest = load_manifest(LocalStore(dest))
    assert manifest is not None
    assert (manifest.last.rows, manifest.last.changed) == (13, 13)


def test_files_are_listed_as_they_are(tmp_path: Path) -> None:
    source, dest = str(write_tiny(tmp_path, 400)), str(tmp_path / "out")
    growth.listing(dest, 400, source)
    growth.verify(dest)
    growth.sync(dest, 400, source)
    os.utime(next(Path(source).rglob("*.jpg")), ns=(0, 0))  # a hundred names share each file
    manifest = load_manifest(LocalStore(dest))
    assert manifest is not None
    with pytest.raises(AssertionError):
        growth.sync(dest, 400, source)


def test_the_slope_of_what_is_linear_is_one_and_of_what_is_flat_is_none() -> None:
    points = [{"rows": rows, "cpu_seconds": 2e-6 * rows, "mib": 50.0} for rows in (1000, 100_000, 10_000_000)]
    found = slopes_of(points)
    assert found["cpu_seconds"] == pytest.approx(1)
    assert found["mib"] == pytest.approx(0)
    assert found["far_cpu_seconds"] == pytest.approx(200)


@pytest.mark.timeout(900)
def test_the_suite_measures_each_step_at_each_size(tmp_path: Path) -> None:
    lines: list[str] = []
    answer = json.loads(json.dumps(measure_growth(Bench(tmp_path, say=lines.append), Sizes((), (300, 600)))))
    assert set(answer["points"]) == {
        "listing",
        "planning",
        "resume at half",
        "verify",
        "sync, nothing changed",
        "sync, 1 % changed",
    }
    for step, points in answer["points"].items():
        assert [point["rows"] for point in points] == [300, 600]
        assert any(line.startswith("| " + step) for table in lines for line in table.splitlines())


def test_the_plot_is_a_small_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = {"listing": [{"rows": 10**n, "cpu_seconds": 1e-6 * 10**n, "mib": 1.0 + n} for n in (3, 4, 5)]}
    assert draw_growth(points, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as image:
        assert image.format == "PNG"
    assert (tmp_path / "growth.png").stat().st_size < 200_000
