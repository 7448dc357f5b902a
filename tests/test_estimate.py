"""What a dry run says of hours and dollars: what a run of this dataset measured, multiplied; else nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from datasets import STORAGE
from test_report import BUDGET, CHUNK, write_log

from pipeline.budget import make_budget
from pipeline.cluster import Node
from pipeline.config import JobConfig
from pipeline.estimate import describe_estimate, last_measured
from pipeline.storage import open_store

if TYPE_CHECKING:
    from pathlib import Path


def lines(folder: Path, images: int = 1000, dollars_per_hour: float | None = None) -> list[str]:
    report = last_measured(open_store(str(folder), STORAGE), dollars_per_hour)
    return list(describe_estimate(report, images))


def table(text: list[str]) -> list[list[float]]:
    """The numbers below the table's head."""
    (head,) = (place for place, line in enumerate(text) if line.split()[0] == "images")
    return [[float(cell.replace(",", "")) for cell in line.split()] for line in text[head + 1 :]]


def test_hours_are_images_by_the_measured_rate_and_dollars_hours_by_the_price(tmp_path: Path) -> None:
    write_log(tmp_path, CHUNK, rate=500.0)
    for images, hours, gpu_hours, dollars in table(lines(tmp_path, 12_345_678, dollars_per_hour=2.5)):
        assert hours == pytest.approx(images / 500 / 3600, abs=0.0051)
        assert gpu_hours == hours  # one actor, one GPU
        assert dollars == pytest.approx(2.5 * images / 500 / 3600, abs=0.0051 + 1e-4 * images / 1e6)


def test_the_numbers_of_images_are_those_to_do_and_the_three_of_the_sizing_guide(tmp_path: Path) -> None:
    write_log(tmp_path, CHUNK)
    assert [row[0] for row in table(lines(tmp_path, 42))] == [42, 1e6, 1e8, 1e9]


def test_without_a_price_there_are_no_dollars(tmp_path: Path) -> None:
    write_log(tmp_path, CHUNK)
    assert "dollars" not in " ".join(lines(tmp_path))
    assert {len(row) for row in table(lines(tmp_path))} == {3}


def test_hours_of_devices_count_each_gpu_and_where_there_is_none_each_cpu(tmp_path: Path) -> None:
    two = [CHUNK, replace(CHUNK, chunk=1, worker="b:1")]
    for name, node, devices, device in (
        ("gpu", Node(4, 1, 64 << 30), 2, "GPU"),
        ("cpu", Node(4, 0, 64 << 30), 8, "CPU"),
    ):
        folder = tmp_path / name
        write_log(folder, *two, budget=make_budget(JobConfig(max_actors=1), [node], can_grow=False), rate=500.0)
        text = lines(folder, 36_000_000)
        assert f"{device} hours" in " ".join(text)
        assert table(text)[0][1:3] == [20.0, 20.0 * devices]


def test_a_gpu_that_never_waits_wants_the_cpus_of_all_stages_at_its_own_rate(tmp_path: Path) -> None:
    write_log(tmp_path, CHUNK)
    (line,) = (line for line in lines(tmp_path) if "never waits" in line)
    # 9 s of forward and 0.1 + 4 + 1 + 0.2 s of CPU for ten images
    assert re.findall(r"[\d.]+", line) == ["1.11", "0.6"]


def test_it_says_which_run_it_goes_by_and_what_bounded_that(tmp_path: Path) -> None:
    write_log(tmp_path, CHUNK)
    (log,) = tmp_path.glob("_raysight/run-*.json")
    assert lines(tmp_path)[0].startswith(f"on the machines of run {log.stem.removeprefix('run-')}: 5.00 images/s by 1 ")
    assert lines(tmp_path)[0].endswith("bound by forward")


def test_a_run_of_a_chunk_an_actor_is_said_to_be_mostly_its_start(tmp_path: Path) -> None:
    write_log(tmp_path / "short", CHUNK, replace(CHUNK, chunk=1, worker="b:1"))
    assert "mostly its start was measured" in lines(tmp_path / "short")[1]
    write_log(tmp_path / "longer", CHUNK, replace(CHUNK, chunk=1))
    assert "its start" not in " ".join(lines(tmp_path / "longer"))


def test_a_run_that_extracted_nothing_is_passed_over(tmp_path: Path) -> None:
    write_log(tmp_path, CHUNK, budget=BUDGET, rate=500.0)
    (log,) = tmp_path.glob("_raysight/run-*.json")
    log.rename(log.with_name("run-20000101T000000Z-1.json"))
    write_log(tmp_path, budget=None, rate=0.0)
    assert "500.00 images/s" in lines(tmp_path)[0]


def test_without_a_run_on_record_nothing_is_guessed(tmp_path: Path) -> None:
    (line,) = lines(tmp_path)
    assert line.startswith("none: no run of this dataset is on record")
