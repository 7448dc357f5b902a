"""Figures of one replica in Prometheus' text format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve.engine import Engine, Outcome

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of an app, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "raysight_requests", "answers by route and status", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "raysight_request_seconds", "from request to answer", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self._images = Counter("raysight_images", "images by outcome", ["outcome"], registry=self._registry)
        admission = engine.admission
        for name, text, value in (
            ("raysight_images_in_flight", "images that are waited for", lambda: admission.images),
            ("raysight_requests_in_flight", "requests that are waited for", lambda: admission.requests),
            ("raysight_forward_seconds_per_image", "of the device, lately", lambda: admission.seconds_per_image),
        ):
            Gauge(name, text, registry=self._registry).set_function(value)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """One answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """The images of one request: ``ok``, or the name of the reject."""
        for outcome in outcomes:
            self._images.labels(getattr(outcome, "error", "ok")).inc()

    def render(self) -> bytes:
        """The text."""
        return generate_latest(self._registry)
