"""What the dashboards ask of Prometheus, and what the documents say that there is to ask."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))

VARIABLES = {"$__rate_interval": "1m", "$run": ".+"}
"""What Grafana puts in: the former for a scrape every 15 s, the latter for all runs."""


def filled_in(query: str) -> str:
    """A query as Prometheus gets it."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    """Each query of the panels and variables."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"])
            assert match is not None, variable["query"]
            yield match[1]


def parts(query: str | promql_parser.Expr) -> list[promql_parser.Expr]:
    """All nodes of a query, as a parser of PromQL sees it. ValueError where Prometheus would refuse it."""
    found: list[promql_parser.Expr] = []
    tree = promql_parser.parse(filled_in(query)) if isinstance(query, str) else query
    promql_parser.walk(tree, lambda node: found.append(node) is None)
    return found


def metrics_of(query: str) -> set[str]:
    """The names of series in a query."""
    return set(labels_of(query))


def labels_of(query: str) -> dict[str, set[str]]:
    """Name of a series → the labels that a query selects it or groups it by."""
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for part in parts(query):
        if isinstance(part, promql_parser.VectorSelector) and part.name:
            labels[part.name].update(matcher.name for matcher in part.matchers.matchers)
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            for below in parts(part.expr):
                if isinstance(below, promql_parser.VectorSelector) and below.name:
                    labels[below.name].update(part.modifier.labels)
    return labels


def unknown(dashboard: dict[str, Any], names: set[str]) -> set[str]:
    """Series that a dashboard asks for and that are not among ``names``."""
    return {name for query in queries(dashboard) for name in metrics_of(query)} - names


def load(path: Path) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(path.read_text())
    return dashboard


def documented() -> dict[str, tuple[str, str, set[str]]]:
    """Name → type, unit and labels, of the tables in docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(ray_raysight_\w+)` \| (\w+) \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    return {name: (kind, unit, set(re.findall(r"`(\w+)`", labels))) for name, kind, unit, labels in rows}
