"""The figures for Prometheus: what chunks add up to, and that the document and the dashboards name what there is.

That Ray exports them so is shown on a running Ray, in tests/test_deploy_cluster.py.
"""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dashboards import DASHBOARDS, documented, labels_of, load, metrics_of, parts, queries, unknown
from test_report import CHUNK, manifest

from pipeline.metrics import JOB_METRICS, JobMetrics, Metric
from pipeline.runlog import labels
from serve.metrics import SERVE_METRICS

if TYPE_CHECKING:
    from pathlib import Path


class Notes:
    """A recorder that adds up, and refuses what the table does not have."""

    def __init__(self, table: tuple[Metric, ...]) -> None:
        self._table = {metric.name: metric for metric in table}
        self.values: dict[str, float] = defaultdict(float)

    def add(self, name: str, value: float, *labels: str) -> None:
        assert value >= 0
        self.values[self._key(name, "counter", labels)] += value

    def set(self, name: str, value: float, *labels: str) -> None:
        self.values[self._key(name, "gauge", labels)] = value

    def observe(self, name: str, value: float, *labels: str) -> None:
        raise AssertionError("a job has no histograms")

    def _key(self, name: str, kind: str, labels: tuple[str, ...]) -> str:
        metric = self._table[name]
        assert (metric.kind, len(metric.labels)) == (kind, len(labels))
        return ".".join((name.removeprefix("raysight_job_"), *labels))


def exported(metric: Metric) -> str:
    """As Ray's port shows it."""
    return f"ray_{metric.name}{'_total' if metric.kind == 'counter' else ''}"


def series(metric: Metric) -> set[str]:
    """What a query may name."""
    ends = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
    return {exported(metric) + end for end in ends}


def test_a_job_adds_up_what_its_chunks_say(tmp_path: Path) -> None:
    notes = Notes(JOB_METRICS)
    figures = JobMetrics(notes)
    figures.expect(manifest(tmp_path), [(0, np.array([0, 1]))])
    assert (notes.values["rows"], notes.values["rows_pending"], notes.values["chunks_pending"]) == (20, 20, 2)
    figures.add(CHUNK)
    assert (notes.values["rows_pending"], notes.values["chunks_pending"]) == (10, 1)
    figures.add(replace(CHUNK, chunk=1, attempt=3, rejects={}, started=105.0, ended=120.0))
    figures.shards(written=1, in_flight=0)
    values = notes.values
    assert (values["images.ok"], values["images.Corrupt"]) == (19, 1)
    assert (values["read_bytes"], values["written_bytes"]) == (8000, 2000)
    assert (values["store_requests.get"], values["store_requests.put"]) == (20, 2)
    assert (values["stage_seconds.forward"], values["stage_cpu_seconds.prepare"]) == (18, 8)
    assert (values["chunks"], values["chunk_attempts"], values["shards_written"]) == (2, 4, 1)
    assert (values["rows_pending"], values["chunks_pending"]) == (0, 0)


def test_actor_seconds_run_from_an_actors_first_chunk_to_the_end_of_its_last_each_by_its_own_clock() -> None:
    notes = Notes(JOB_METRICS)
    figures = JobMetrics(notes)
    for worker, started, ended in (
        ("a", 100.0, 110.0),
        ("b", 9000.0, 9005.0),
        ("a", 105.0, 120.0),
        ("a", 101.0, 119.0),
    ):
        figures.add(replace(CHUNK, worker=worker, started=started, ended=ended))
    assert notes.values["actor_seconds"] == 20 + 5


def test_the_document_lists_every_figure_with_its_type_unit_and_labels_and_no_other() -> None:
    common = set(labels("run", "dest"))
    expected = {exported(metric): (metric.kind, metric.unit, {*metric.labels, *common}) for metric in JOB_METRICS}
    expected |= {exported(metric): (metric.kind, metric.unit, set(metric.labels)) for metric in SERVE_METRICS}
    assert documented() == expected


def test_labels_hold_no_secret_and_no_name_that_prometheus_gives_itself() -> None:
    for metric in (*JOB_METRICS, *SERVE_METRICS):
        assert not {"job", "instance", "pod", "le"} & set(metric.labels)
    assert labels("run", "s3://bucket/prefix/") == {"run": "run", "dataset": "s3://bucket/prefix"}


def test_there_is_a_dashboard_of_the_job_and_one_of_the_endpoint() -> None:
    assert [path.name for path in DASHBOARDS] == ["endpoint.json", "job.json"]
    assert all(list(queries(load(path))) for path in DASHBOARDS)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_what_a_dashboard_asks_of_raysight_is_a_figure_of_it(path: Path) -> None:
    ours = {name for metric in (*JOB_METRICS, *SERVE_METRICS) for name in series(metric)}
    asked = unknown(load(path), set())
    assert {name for name in asked if "raysight" in name} <= ours
    assert {name for name in asked if "raysight" not in name}, "it shows nodes too"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_wrong_name_in_any_query_is_found(path: Path) -> None:
    right = load(path)
    names = unknown(right, set())
    assert unknown(right, names) == set()
    for place, panel in enumerate(right["panels"]):
        for number, target in enumerate(panel["targets"]):
            for name in metrics_of(target["expr"]):
                wrong = copy.deepcopy(right)
                wrong["panels"][place]["targets"][number]["expr"] = re.sub(rf"\b{name}\b", "wrong_name", target["expr"])
                assert unknown(wrong, names) == {"wrong_name"}


def test_names_are_told_from_functions_labels_and_keywords() -> None:
    query = (
        'histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{a=~"b.*", c!="d{e}"}[5m]))) / on () group_left () y or z'
    )
    assert metrics_of(query) == {"x_bucket", "y", "z"}


def test_a_query_that_prometheus_would_refuse_is_found() -> None:
    for query in ("sum(x", "rate(x)", 'x{run="a}', "x[5m", "sum by (x"):
        with pytest.raises(ValueError, match=r"\w"):
            list(parts(query))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_panel_selects_groups_and_names_by_labels_that_its_figures_have(path: Path) -> None:
    ours = {name: names | {"WorkerId", "le"} for name, (_, _, names) in documented().items()}
    rays = {"ip", "operator", "deployment"}
    for panel in load(path)["panels"]:
        for target in panel["targets"]:
            used = labels_of(target["expr"])
            for name, names in used.items():
                assert names <= ours.get(re.sub(r"_(bucket|sum|count)$", "", name), rays), target["expr"]
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown <= rays.union(*used.values()), panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_their_own_numbers_and_places_and_ask_the_chosen_prometheus(path: Path) -> None:
    dashboard = load(path)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    defined = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (defined["datasource"]["type"], defined["datasource"]["query"]) == ("datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    askers = [*panels, *(target for panel in panels for target in panel["targets"])]
    askers += [variable for variable in defined.values() if variable["type"] == "query"]
    assert all(asker["datasource"] == chosen for asker in askers)
    used = set(re.findall(r"\$(?!__)\{?(\w+)", json.dumps(panels)))
    assert used == set(defined)


def test_both_dashboards_can_be_in_one_grafana() -> None:
    assert len({load(path)["uid"] for path in DASHBOARDS}) == len(DASHBOARDS)
    assert all(0 < len(load(path)["uid"]) <= 40 for path in DASHBOARDS)
