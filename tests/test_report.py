"""What ``report`` makes of the logs of runs: sums, ratios, what bounded a run, and three forms of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from datasets import FINGERPRINT, STORAGE, numbers

from pipeline.budget import make_budget
from pipeline.chunk_result import ChunkResult
from pipeline.cluster import Node
from pipeline.config import JobConfig
from pipeline.counting import CountingStore
from pipeline.cut import Cut
from pipeline.errors import UnavailableError
from pipeline.manifest import load_manifest
from pipeline.report import bound, busy_fractions, figures, load_runs
from pipeline.report_text import summary
from pipeline.runlog import RunLog
from pipeline.storage import open_store
from serve.cli import main

if TYPE_CHECKING:
    from s3_server import Bucket

    from pipeline.budget import Budget
    from pipeline.manifest import Manifest
    from pipeline.runlog import Outcome

ROOT = Path(__file__).parents[1]

CHUNK = ChunkResult(
    shard=0,
    chunk=0,
    rows=10,
    rejects={"Corrupt": 1},
    attempt=1,
    bytes_read=4000,
    bytes_written=1000,
    read_seconds=2.0,
    read_cpu_seconds=0.1,
    prepare_seconds=6.0,
    prepare_cpu_seconds=4.0,
    forward_seconds=9.0,
    forward_cpu_seconds=1.0,
    commit_seconds=1.0,
    commit_cpu_seconds=0.2,
    chunk_seconds=10.0,
    worker="a:1",
    started=100.0,
    ended=110.0,
    requests={"get": 10, "put": 1},
    batch_size=64,
    batch_left=64,
)

BUDGET = make_budget(JobConfig(decode_threads=2), [Node(4.0, 1.0, 64 << 30)], can_grow=False)
"""One actor with four CPUs and a GPU."""


def write_log(
    folder: Path,
    *chunks: ChunkResult,
    budget: Budget | None = BUDGET,
    rate: float = 5.0,
    outcome: Outcome = "complete",
    error: Exception | None = None,
) -> None:
    """What a job that did these chunks leaves behind."""
    dest = open_store(str(folder), STORAGE)
    log = RunLog(FINGERPRINT)
    log.budget = budget
    for chunk in chunks:
        log.add(chunk)
    log.count({"put": 3, "list": 2})
    dest.put(*log.to_object(manifest(folder), rate, skipped=7, outcome=outcome, error=error))


def manifest(folder: Path) -> Manifest:
    """Of twenty rows; made when there is none."""
    dest = open_store(str(folder), STORAGE)
    return load_manifest(dest) or numbers(dest, 20, Cut(10, 1 << 20, 20)).manifest


@pytest.fixture
def one(tmp_path: Path) -> dict[str, Any]:
    """The log of a run of two chunks on one actor."""
    write_log(tmp_path, CHUNK, replace(CHUNK, chunk=1, attempt=2, rejects={}, started=105.0, ended=120.0))
    (run,) = load_runs(open_store(str(tmp_path), STORAGE)).values()
    return run


def test_counts_and_bytes_are_the_sums_of_the_chunks(one: dict[str, Any]) -> None:
    report = figures("it", one, None)
    assert (report["rows"], report["rejects"], report["rejects_by_reason"]) == (19, 1, {"Corrupt": 1})
    assert (report["chunks"], report["retries"], report["skipped"], report["images"]) == (2, 1, 7, 20)
    assert (report["bytes_read"], report["bytes_written"]) == (8000, 2000)


def test_requests_are_those_of_chunks_and_of_everything_else(one: dict[str, Any]) -> None:
    assert figures("it", one, None)["requests"] == {"get": 20, "put": 2 + 3, "list": 2}


def test_stages_are_given_by_the_image(one: dict[str, Any]) -> None:
    stages = figures("it", one, None)["stages"]
    assert stages["read"] == {"seconds_per_image": 0.2, "cpu_ms_per_image": 10}
    assert stages["prepare"] == {"seconds_per_image": 0.6, "cpu_ms_per_image": 400}
    assert stages["forward"] == {"seconds_per_image": 0.9, "cpu_ms_per_image": 100}
    assert stages["commit"] == {"seconds_per_image": 0.1, "cpu_ms_per_image": 20}


def test_busy_fractions_are_of_the_time_from_an_actors_first_chunk_to_the_end_of_its_last(one: dict[str, Any]) -> None:
    assert one["actor_seconds"] == 20  # from 100 to 120, although the chunks overlap
    assert busy_fractions(one) == {
        "device": 18 / 20,
        "cpus": 2 * (0.1 + 4 + 1 + 0.2) / (4 * 20),
        "decode_threads": 8 / (2 * 20),
        "read_tasks": 4 / (2 * 20),
        "commits": 2 / (2 * 20),
    }


def test_actors_add_up_each_by_its_own_clock(tmp_path: Path) -> None:
    sooner = replace(CHUNK, started=95.0, ended=105.0)  # its result came later: an actor has two chunks in hand
    write_log(tmp_path, CHUNK, sooner, replace(CHUNK, worker="b:1", started=90_000.0, ended=90_015.0))
    (run,) = load_runs(open_store(str(tmp_path), STORAGE)).values()
    assert (run["actors"], run["actor_seconds"]) == (2, 15 + 15)


def test_the_images_of_a_forward_are_told_for_each_actor(tmp_path: Path) -> None:
    write_log(tmp_path, CHUNK, replace(CHUNK, chunk=1), replace(CHUNK, worker="b:1", batch_size=16, batch_left=16))
    (run,) = load_runs(open_store(str(tmp_path), STORAGE)).values()
    report = figures("it", run, None)
    assert report["batch_sizes"] == {"16": 1, "64": 1}
    assert dict(summary(report))["speed"].endswith("with 2 actor(s), batches of 16 (1), 64 (1)")


def test_what_lack_of_memory_left_of_a_batch_stands_beside_its_size(tmp_path: Path) -> None:
    """Chunks of one actor may come in any order, and no batch grows again."""
    write_log(tmp_path, *(replace(CHUNK, chunk=number, batch_left=left) for number, left in enumerate((64, 16, 32))))
    (run,) = load_runs(open_store(str(tmp_path), STORAGE)).values()
    report = figures("it", run, None)
    assert (report["batch_sizes"], report["batch_sizes_left"]) == ({"64": 1}, {"16": 1})
    assert dict(summary(report))["speed"].endswith("with 1 actor(s), batches of 64, of which lack of memory left 16")


def test_a_log_from_before_batches_were_recorded_is_reported_without_them(one: dict[str, Any]) -> None:
    with_size, without = (
        dict(summary(figures("it", run, None)))["speed"]
        for run in (one, {name: value for name, value in one.items() if not name.startswith("batch_sizes")})
    )
    assert with_size.endswith("with 1 actor(s), batches of 64")
    assert without.endswith("with 1 actor(s)")


def test_a_million_images_cost_what_their_hours_cost(one: dict[str, Any]) -> None:
    assert figures("it", one, 3.6)["dollars_per_million_images"] == pytest.approx(1e6 / 5 / 3600 * 3.6)
    assert figures("it", one, None)["dollars_per_million_images"] is None


@pytest.mark.parametrize(
    ("changes", "stage", "reason"),
    [
        ({}, "forward", "the device was busy 90 % of the time"),
        ({"forward_seconds": 2, "prepare_cpu_seconds": 36}, "prepare", "the decode threads were busy 90 %"),
        ({"forward_seconds": 2, "read_seconds": 38}, "read", "the read tasks were busy 95 %"),
        ({"forward_seconds": 2, "commit_seconds": 28}, "commit", "commits were busy 70 %"),
        ({"forward_seconds": 2}, None, "nothing was busy for half of the time"),
        ({"forward_seconds": 2, "prepare_cpu_seconds": 1}, None, "nothing was busy for half of the time"),
    ],
)
def test_a_run_on_a_gpu_is_bound_by_the_stage_whose_resource_is_busiest(
    changes: dict[str, float], stage: str | None, reason: str, one: dict[str, Any]
) -> None:
    run = one | changes
    limit = bound(run, busy_fractions(run))
    assert limit.stage == stage
    assert reason in limit.reason


@pytest.mark.parametrize("stage", ["prepare", "forward"])
def test_a_run_without_a_gpu_is_bound_by_the_stage_that_takes_most_of_the_cpus(stage: str, one: dict[str, Any]) -> None:
    run = one | {"budget": one["budget"] | {"gpus_per_actor": 0}, f"{stage}_cpu_seconds": 60}
    limit = bound(run, busy_fractions(run))
    assert limit.stage == stage
    assert f"the CPUs, of which {stage} took" in limit.reason


def test_a_run_whose_threads_wait_for_cpus_that_others_have_says_so(one: dict[str, Any]) -> None:
    # 8 of 80 CPU seconds were used, although decoding and forwards stood at it for 40.
    run = one | {
        "budget": one["budget"] | {"gpus_per_actor": 0, "forward_streams": 2},
        "prepare_seconds": 30,
        "prepare_cpu_seconds": 6,
        "forward_seconds": 5,
        "forward_cpu_seconds": 2,
    }
    limit = bound(run, busy_fractions(run))
    assert limit.stage == "prepare"
    assert "had a CPU for 20 % of their time" in limit.reason


def test_a_run_without_a_gpu_whose_threads_had_cpus_and_little_to_do_is_bound_by_nothing(one: dict[str, Any]) -> None:
    run = one | {
        "budget": one["budget"] | {"gpus_per_actor": 0, "forward_streams": 2},
        "prepare_seconds": 6,
        "forward_seconds": 2,
        "forward_cpu_seconds": 4,
    }
    assert bound(run, busy_fractions(run)).stage is None


def test_what_was_at_work_before_the_actors_had_any_was_busy_all_of_the_time(one: dict[str, Any]) -> None:
    busy = busy_fractions(one | {"read_seconds": 1000})
    assert busy is not None
    assert busy["read_tasks"] == 1


def test_a_run_that_did_nothing_has_a_report_too(tmp_path: Path) -> None:
    write_log(tmp_path, budget=None, rate=0.0, outcome="interrupted")
    (run,) = load_runs(open_store(str(tmp_path), STORAGE)).values()
    report = figures("it", run, 1.0)
    assert (report["rows"], report["busy"], report["bound_by"]) == (0, None, None)
    assert report["dollars_per_million_images"] is None
    assert report["stages"]["read"] == {"seconds_per_image": None, "cpu_ms_per_image": None}
    assert main(["report", str(tmp_path)]) == 0


def test_a_run_that_failed_says_with_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, CHUNK, outcome="failed", error=UnavailableError("s3://b/k: SlowDown"))
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "not finished; the same command goes on from there" in printed
    assert "ended with   UnavailableError: s3://b/k: SlowDown" in printed
    (run,) = reported(capsys, tmp_path)["runs"]
    assert (run["outcome"], run["error"]) == (
        "failed",
        {"class": "UnavailableError", "message": "s3://b/k: SlowDown"},
    )
    assert main(["report", str(tmp_path), "--format", "html"]) == 0
    assert "UnavailableError: s3://b/k: SlowDown" in capsys.readouterr().out


@pytest.fixture
def three(tmp_path: Path, one: dict[str, Any]) -> Path:
    """A dataset with three runs."""
    for name, run in {
        "20260101T000000Z-9": one | {"started": "2026-01-01T00:00:00+00:00", "rejects": {"Empty": 2, "Corrupt": 1}},
        "20270101T000000Z-1": one | {"started": "2027-01-01T00:00:00+00:00", "rejects": {}},
    }.items():
        (tmp_path / "_raysight" / f"run-{name}.json").write_text(json.dumps(run))
    return tmp_path


def reported(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert main(["report", *map(str, arguments), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_latest_run_is_reported_unless_told_otherwise(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run["run"] for run in reported(capsys, three)["runs"]] == ["20270101T000000Z-1"]
    named = reported(capsys, three, "--run", "20260101")
    assert [run["run"] for run in named["runs"]] == ["20260101T000000Z-9"]
    assert named["total"] is None


def test_all_runs_come_oldest_first_and_with_their_sums(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = reported(capsys, three, "--run", "all")
    started = [run["started"] for run in report["runs"]]
    assert started == sorted(started)
    assert len(started) == report["total"]["runs"] == 3
    assert report["total"]["rejects_by_reason"] == {"Empty": 2, "Corrupt": 2}
    assert report["total"]["rows"] == sum(run["rows"] for run in report["runs"])
    assert report["total"]["requests"] == {"get": 60, "put": 15, "list": 6}


def test_text_names_everything_a_person_asks_for(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(three), "--run", "20260101", "--dollars-per-hour", "3.6"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "17 features, 3 rejects, 7 were done before" in words
    assert "Empty 2, Corrupt 1" in words
    assert "7.8 KiB read" in words
    assert "GET 20, PUT 5, LIST 2" in words
    assert "bound by forward: the device was busy 90 % of the time" in words
    assert "$200.00 for a million images" in words
    assert "prepare 600.00 400.00" in words


def test_a_report_needs_neither_ray_nor_torch(three: Path) -> None:
    script = (
        "import sys; from serve.cli import main; code = main(sys.argv[1:]);"
        " sys.exit(code or ', '.join(name for name in ('ray', 'torch') if name in sys.modules) or None)"
    )
    command = [sys.executable, "-c", script, "report", str(three)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")


class Page(HTMLParser):
    """The text of a page, and every tag and address in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str | None] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_escapes_what_it_shows(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = three / "_raysight" / "run-20270101T000000Z-1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "<script>alert(1)</script>"}))
    path.rename(path.with_name("run-<i>.json"))
    dataset = three.rename(three.with_name("<b>"))
    assert main(["report", str(dataset), "--run", "all", "--format", "html"]) == 0
    html = capsys.readouterr().out
    page = Page(html)
    assert page.addresses == []
    assert "url(" not in html
    assert not page.tags.keys() & {"script", "i", "b"}
    for text in ("<script>alert(1)</script>", "<i>", f"{dataset}/"):
        assert text in page.text
    assert page.tags["h2"] == 3 + 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--run", "2025"], "--run 2025: 0 runs have that name; there are 20260101T000000Z-9, "),
        (["--run", "202"], "--run 202: 3 runs have that name"),
        (["--dollars-per-hour", "0"], "0 is not a price"),
        (["--dollars-per-hour", "free"], "'free' is not a number"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    arguments: list[str], complaint: str, three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["report", str(three), *arguments])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    assert code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"started": "2026"}'])
def test_a_log_of_another_version_is_named(content: str, three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (three / "_raysight" / "run-x.json").write_text(content)
    assert main(["report", str(three)]) == 2
    assert "_raysight/run-x.json is not of this version" in capsys.readouterr().err


def test_a_place_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "has no run on record" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_counting_store_counts_what_goes_through_it_once(tmp_path: Path) -> None:
    store = CountingStore(open_store(str(tmp_path / "store"), STORAGE))
    store.put("a", b"1")
    store.put_if_absent("b", b"2")
    assert [item.key for item in store.list_objects()] == ["a", "b"]
    assert (store.get("a"), store.get_tail("b", 1)) == (b"1", b"2")
    assert len(store.fetch_many(["a", "b", "gone"], 10)) == 3
    store.delete([f"{number}" for number in range(1001)])
    assert store.take() == {"put": 2, "list": 1, "get": 2 + 3, "delete": 2}
    assert store.take() == {}


def test_what_a_store_counts_is_what_a_bucket_is_asked(bucket: Bucket) -> None:
    bucket.server.set_faults()  # counts from here on
    store = CountingStore(open_store(f"{bucket.url}/photos", STORAGE))
    store.put("a", b"1")
    store.put_if_absent("b", b"2")
    assert len(list(store.list_objects())) == 2
    store.get("a")
    store.fetch_many(["a", "b", "gone"], 10)
    store.delete(["a", "b"])
    asked: Counter[str] = Counter()
    for request, number in bucket.server.requests().items():
        method, _, place = request.partition(" ")
        kind = {"GET": "get" if place.partition("/")[2] else "list", "PUT": "put", "POST": "delete"}.get(method)
        asked.update({kind: number} if kind else {})
    assert store.take() == dict(asked)
