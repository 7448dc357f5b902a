"""The figures of one replica, as Prometheus sees them; the names and units are documented in docs/metrics.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipeline.metrics import Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.metrics import Recorder
    from serve.engine import Engine, Outcome

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

SERVE_METRICS = (
    Metric("raysight_serve_requests", "counter", "requests", "answers by route and status", ("route", "status")),
    Metric("raysight_serve_request_seconds", "histogram", "seconds", "from request to answer", ("route",), _SECONDS),
    Metric("raysight_serve_images", "counter", "images", "by outcome: ok, or the reject's error", ("outcome",)),
    Metric("raysight_serve_batch_images", "histogram", "images", "of a forward", (), _IMAGES),
    Metric("raysight_serve_forward_seconds", "counter", "seconds", "the device was held by forwards"),
    Metric("raysight_serve_forward_seconds_per_image", "gauge", "seconds", "of the device, lately"),
    Metric("raysight_serve_images_waiting", "gauge", "images", "prepared, and not on the device yet"),
    Metric("raysight_serve_images_in_flight", "gauge", "images", "of all requests that are in"),
    Metric("raysight_serve_requests_in_flight", "gauge", "requests", "that are in"),
)


class Metrics:
    """Counts what an app answers and its engine does.

    Args:
        engine: whose forwards are counted.
        further: where the figures go besides :meth:`render`.
    """

    def __init__(self, engine: Engine, further: Sequence[Recorder] = ()) -> None:
        self._engine = engine
        self._own = _PrometheusRecorder()
        self._recorders = (self._own, *further)
        engine.on_forward = self.forward

    def observe(self, route: str, status: int, seconds: float) -> None:
        """One answer."""
        for recorder in self._recorders:
            recorder.add("raysight_serve_requests", 1, route, str(status))
            recorder.observe("raysight_serve_request_seconds", seconds, route)
        self._show()

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """The images of one request."""
        for outcome in outcomes:
            for recorder in self._recorders:
                recorder.add("raysight_serve_images", 1, getattr(outcome, "error", "ok"))

    def forward(self, seconds: float, images: int) -> None:
        """One forward, as the device was held."""
        for recorder in self._recorders:
            recorder.observe("raysight_serve_batch_images", images)
            recorder.add("raysight_serve_forward_seconds", seconds)
        self._show()

    def render(self) -> bytes:
        """All, in Prometheus' text format."""
        self._show()
        return self._own.render()

    def _show(self) -> None:
        """Sets what changes with forwards and answers, and so never stands still for long where anything goes on."""
        admission = self._engine.admission
        for recorder in self._recorders:
            recorder.set("raysight_serve_forward_seconds_per_image", admission.seconds_per_image)
            recorder.set("raysight_serve_images_waiting", self._engine.waiting)
            recorder.set("raysight_serve_images_in_flight", admission.images)
            recorder.set("raysight_serve_requests_in_flight", admission.requests)


class _PrometheusRecorder:
    """A :class:`pipeline.metrics.Recorder` in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {metric.name: self._make(metric) for metric in SERVE_METRICS}

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        match metric.kind:
            case "counter":
                return Counter(metric.name, metric.text, metric.labels, registry=self._registry)
            case "gauge":
                return Gauge(metric.name, metric.text, metric.labels, registry=self._registry)
            case "histogram":
                return Histogram(
                    metric.name, metric.text, metric.labels, buckets=metric.buckets, registry=self._registry
                )

    def add(self, name: str, value: float, *labels: str) -> None:
        self._of(name, labels).inc(value)

    def set(self, name: str, value: float, *labels: str) -> None:
        self._of(name, labels).set(value)

    def observe(self, name: str, value: float, *labels: str) -> None:
        self._of(name, labels).observe(value)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def _of(self, name: str, labels: tuple[str, ...]) -> Any:
        metric = self._metrics[name]
        return metric.labels(*labels) if labels else metric
