"""Figures by way of Ray: its agent on each node shows them on the node's Prometheus port, with ``ray_`` before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.util import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.metrics import Metric


class RayRecorder:
    """A :class:`pipeline.metrics.Recorder` whose every figure has the labels ``common`` besides its own."""

    def __init__(self, table: Iterable[Metric], common: Mapping[str, str] | None = None) -> None:
        common = dict(common or {})
        self._labels = {metric.name: metric.labels for metric in table}
        self._metrics: dict[str, Any] = {}
        for metric in table:
            keys = (*metric.labels, *common)
            match metric.kind:
                case "counter":
                    made = metrics.Counter(metric.name, metric.text, keys)
                case "gauge":
                    made = metrics.Gauge(metric.name, metric.text, keys)
                case "histogram":
                    made = metrics.Histogram(metric.name, metric.text, list(metric.buckets), keys)
            made.set_default_tags(common)
            self._metrics[metric.name] = made

    def add(self, name: str, value: float, *labels: str) -> None:
        if value > 0:  # Ray refuses to add nothing
            self._metrics[name].inc(value, self._tags(name, labels))

    def set(self, name: str, value: float, *labels: str) -> None:
        self._metrics[name].set(value, self._tags(name, labels))

    def observe(self, name: str, value: float, *labels: str) -> None:
        self._metrics[name].observe(value, self._tags(name, labels))

    def _tags(self, name: str, labels: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self._labels[name], labels, strict=True))
