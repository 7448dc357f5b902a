"""What the dashboards ask of Prometheus, and what the documents say that there is to ask."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))

_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "group_left", "group_right"}


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


def metrics_of(query: str) -> set[str]:
    """The names of series in a query of PromQL: its words that are no function, label, keyword or string."""
    query = re.sub(r'"[^"]*"|\[[^]]*\]', "", query)
    query = re.sub(r"\{[^}]*\}", "", query)
    query = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    return {
        match[1]
        for match in re.finditer(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?![\w:]|\s*\()", query)
        if match[1] not in _WORDS
    }


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
