"""The suites of ``raysight bench``. The endpoint's are added at the root command, which stands above both."""

from __future__ import annotations

from pipeline.bench.suite import Suite

SUITES = (
    Suite("limits", "the bare limit of each stage, and what is reached", "pipeline.bench.suites.limits:run"),
    Suite("feed", "how fast the model is fed, beside other ways of doing it", "pipeline.bench.suites.feed:run"),
    Suite("forward", "how much of the bare forward loop a job keeps", "pipeline.bench.suites.forward:run"),
    Suite("growth", "how the steps of a job grow with its rows", "pipeline.bench.suites.growth:run"),
    Suite("formats", "bytes and speed of an embedding by the way it is stored", "pipeline.bench.suites.formats:run"),
    Suite("memory", "whether the driver's memory stays flat", "pipeline.bench.suites.memory:run"),
    Suite("startup", "what there is to wait for before the work", "pipeline.bench.suites.startup:run"),
    Suite("patches", "the memory that a job with patch tokens takes", "pipeline.bench.suites.patches:run"),
)
