"""The bare limit of each stage on the machine at hand, and what raysight reaches of it."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_corpus
from pipeline.bench.table import render, spread
from pipeline.budget import ALLOCATOR, make_budget
from pipeline.cluster import this_machine
from pipeline.config import JobConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.bench.suite import Bench, Plan

_IMAGES = 300
_MODEL = {"weights": "random:0", "precision": "fp32"}


def run(bench: Bench) -> dict[str, Any]:
    """Every stage by itself; nothing here starts Ray."""
    source = str(write_corpus(bench.work, _IMAGES))
    streams = make_budget(JobConfig(), this_machine(), can_grow=False)
    times = 4 if bench.full else 1
    plan: Plan = {
        "gets": ("bare:gets", {"folder": source, "passes": 8 * times}),
        "pixels": ("bare:pixels", {"source": source, "images": 50 * times}),
        "prepare": ("limit:threads", {"source": source, "images": 1000 * times}),
        "gemm": ("bare:gemm", {"size": 2048, "seconds": 2.0 * times}),
        "forward": (
            "forward:loop",
            {
                "source": source,
                "images": 8 * times,
                "batch_size": streams.batch_size,
                "streams": streams.forward_streams,
                "model": _MODEL,
            },
        ),
        "parquet": ("bare:parquet", {"rows": 8192, "dim": 384}),
    }
    environment = {} if streams.gpus_per_actor else dict.fromkeys(("prepare", "forward"), ALLOCATOR)
    results = bench.rounds(plan, environment)
    bench.say("")
    bench.say(f"bare limits, 500×375 JPEGs of 45 kB, 518 px, {bench.conditions()}")
    bench.say(render(["stage", "limit", "raysight", "of the limit"], rows(results)))
    flops, server = results["gemm"][0]["flops"], median(item["alone"]["server"] for item in results["gets"])
    bench.say(f"{flops / 1e9:.1f} GFLOP an image (torch.utils.flop_counter); GETs cost the server {server:.0f} µs each")
    return {"results": results}


def rows(results: dict[str, list[Any]]) -> list[list[str]]:
    """A line of the table for each stage: the limit, what raysight reaches, and the fraction."""

    def line(
        name: str, limit: Callable[[int], float], ours: Callable[[int], float] | None, unit: str, digits: int
    ) -> list[str]:
        numbers = range(len(results["gemm"]))
        limits = [limit(number) for number in numbers]
        if ours is None:
            return [name, f"{spread(limits, digits)} {unit}", "", ""]
        reached = [ours(number) for number in numbers]
        fractions = [mine / bare for mine, bare in zip(reached, limits, strict=True)]
        return [name, f"{spread(limits, digits)} {unit}", f"{spread(reached, digits)} {unit}", spread(fractions, 2)]

    def a_core(stage: str, kind: str, part: str | None, per_second: float) -> Callable[[int], float]:
        def rate(number: int) -> float:
            cost = results[stage][number][kind] if part is None else results[stage][number][kind][part]
            return per_second / float(cost)

        return rate

    def gemm(kind: str) -> Callable[[int], float]:
        return lambda number: float(results["gemm"][number][kind])

    def forward(number: int) -> float:
        return float(results["forward"][number]["steady"]) * float(results["gemm"][number]["flops"]) / 1e9

    def prepare(number: int) -> float:
        return float(results["prepare"][number]["steady"])

    lines = [
        line(
            "object GETs (obstore), a core",
            a_core("gets", "alone", "client", 1e6),
            a_core("gets", "raysight", "client", 1e6),
            "/s",
            0,
        ),
        line(
            "decode (libjpeg-turbo), a core",
            a_core("pixels", "decode", "alone", 1e3),
            a_core("pixels", "decode", "raysight", 1e3),
            "images/s",
            0,
        ),
        line(
            "resize (torch, uint8), a core",
            a_core("pixels", "resize", "alone", 1e3),
            a_core("pixels", "resize", "raysight", 1e3),
            "images/s",
            0,
        ),
        line("decode and resize, all cores", prepare, None, "images/s", 0),
        line("matrix product fp32; forward", gemm("fp32"), forward, "GFLOP/s", 0),
        line("matrix product bf16", gemm("bf16"), None, "GFLOP/s", 0),
        line(
            "Parquet write; commit of a chunk",
            lambda number: float(results["parquet"][number]["alone"]),
            lambda number: float(results["parquet"][number]["raysight"]),
            "MB/s",
            0,
        ),
    ]
    if "copy" in results["gemm"][0]:
        lines.append(line("copy to the GPU, pinned", gemm("copy"), None, "GB/s", 1))
    return lines
