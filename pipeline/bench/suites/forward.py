"""How much of the bare forward loop a job keeps, with the real model."""

from __future__ import annotations

from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_corpus
from pipeline.bench.table import ratios, render, spread, verdict
from pipeline.budget import ALLOCATOR, make_budget
from pipeline.cluster import this_machine
from pipeline.config import JobConfig

if TYPE_CHECKING:
    from pipeline.bench.suite import Bench, Plan
    from pipeline.budget import Budget

_QUICK_IMAGES, _FULL_IMAGES = 16, 192
_RATIO = 0.97
_MODEL = {"weights": "random:0", "precision": "fp32"}

_GPU_BATCH = 64  # where the actor would find out


def run(bench: Bench) -> dict[str, Any]:
    """The job's rate over that of ``Extractor.forward`` on batches prepared beforehand; in full compiled as well."""
    budget = make_budget(JobConfig(), this_machine(), can_grow=False)
    models: dict[str, dict[str, Any]] = {"": _MODEL}
    if bench.full and (budget.gpus_per_actor or find_spec("openvino")):
        models[", compiled"] = {**_MODEL, "compile": True}
    return {f"results{name}": measure_forward(bench, budget, model) for name, model in models.items()}


def measure_forward(bench: Bench, budget: Budget, model: dict[str, Any]) -> dict[str, Any]:
    """raysight and its limit, for these settings of ``[model]`` other than the defaults."""
    images = _FULL_IMAGES if bench.full else _QUICK_IMAGES
    source = str(write_corpus(bench.work, images))
    size = budget.batch_size or _GPU_BATCH
    bare = {"source": source, "images": images, "batch_size": size, "model": model}
    job = {"batch_size": size, "chunk_rows": max(size, min(budget.chunk_rows, images // 8))}
    plan: Plan = {
        f"bare loop, {count} at a time": ("forward:loop", {**bare, "streams": count})
        for count in sorted({1, budget.forward_streams})
    }
    loops = list(plan)
    plan["raysight"] = (
        "job:run",
        {"source": source, "dest": str(bench.work / "raysight"), "extractor": "model", "job": job, "model": model},
    )
    # The job's actors have it from the job itself.
    results = bench.rounds(plan, {} if budget.gpus_per_actor else dict.fromkeys(loops, ALLOCATOR))
    steady = {name: [item["steady"] for item in items] for name, items in results.items()}
    best = max(loops, key=lambda name: median(steady[name]))
    rows = [
        [name, f"{images:,}", spread(values, 3), spread(ratios(values, steady[best]), 3)]
        for name, values in steady.items()
    ]
    bench.say("")
    bench.say(f"default model, {model}, 518 px, batches of {size}, {budget.threads} threads, {bench.conditions()}")
    bench.say(render(["what", "images", "images/s, steady", "of the better loop"], rows))
    bench.say(f"a forward ran in {median(item['busy'] for item in results['raysight']):.1%} of raysight's time")
    for line in verdict({f"raysight ÷ {best}": (median(ratios(steady["raysight"], steady[best])), _RATIO)}):
        bench.say(line)
    return results
