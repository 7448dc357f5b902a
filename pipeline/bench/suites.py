"""The three measurements, put together from single ones and printed as tables."""

from __future__ import annotations

import os
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_corpus, write_tiny
from pipeline.bench.runner import measure
from pipeline.bench.table import ratios, render, slope, spread, verdict
from pipeline.budget import ALLOCATOR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Say = Callable[[str], None]
    Plan = dict[str, tuple[str, dict[str, Any]]]

_FAST_DEVICE = {"batch_size": 64, "chunk_rows": 256}
"""The slice stands for a device that never keeps anybody waiting: a GPU's batches, a GPU's chunks in small."""

_GUIDE_RATIO, _LIMIT_RATIO, _FORWARD_RATIO = 7.0, 0.6, 0.95


def feed(work: Path, images: int, peer_images: int, rounds: int, timeout_s: float, say: Say) -> dict[str, Any]:
    """How fast the model is fed, against the bare limit and against what people do today.

    Args:
        work: folder for the corpus and the outputs.
        images: files that raysight and the limits go through.
        peer_images: files that the slower peers go through.
        rounds: each round measures everything once, in turn.
        timeout_s: seconds for one measurement.
        say: prints a line.
    """
    source, few = str(write_corpus(work, images)), str(write_corpus(work, peer_images))
    peer = {"source": few, "images": peer_images}
    plan: Plan = {
        "limit, threads": ("limit:threads", {"source": source, "images": images}),
        "limit, processes": ("limit:processes", {"source": source, "images": images}),
        "raysight": (
            "job:run",
            {"source": source, "dest": str(work / "raysight"), "extractor": "slice", "job": _FAST_DEVICE},
        ),
        "Ray Data, as its guide": ("peers:guide", {**peer, "dest": str(work / "guide")}),
        "torch DataLoader": (
            "peers:dataloader",
            {**peer, "dest": str(work / "dataloader")},
        ),
    }
    # The limits get what raysight's actors get.
    results = _rounds(plan, rounds, timeout_s, say, dict.fromkeys(("limit, threads", "limit, processes"), ALLOCATOR))
    steady = {name: [item["steady"] for item in items] for name, items in results.items()}
    limit = max(("limit, threads", "limit, processes"), key=lambda name: median(steady[name]))
    rows = [
        [
            name,
            f"{items[0].get('images', images):,}",
            spread(steady[name], 0),
            spread([item["whole"] for item in items], 0) if "whole" in items[0] else "",
            spread(ratios(steady["raysight"], steady[name]), 2),
        ]
        for name, items in results.items()
    ]
    say("")
    say(f"model replaced by a slice, 500×375 JPEGs, 518 px, {_machine()}, {rounds} rounds: median (range)")
    say(render(["what", "images", "images/s, steady", "images/s, whole run", "raysight ÷ this"], rows))
    against_guide = ratios(steady["raysight"], steady["Ray Data, as its guide"])
    against_limit = ratios(steady["raysight"], steady[limit])
    goals = {
        "raysight ÷ Ray Data's guide": (median(against_guide), _GUIDE_RATIO),
        f"raysight ÷ {limit}": (median(against_limit), _LIMIT_RATIO),
    }
    for line in verdict(goals):
        say(line)
    return {"results": results, "limit": limit}


def forward(
    work: Path, images: int, rounds: int, batch_size: int | None, model: dict[str, Any], timeout_s: float, say: Say
) -> dict[str, Any]:
    """How much of the bare forward loop a job keeps, with the real model.

    Args:
        work: folder for the corpus and the outputs.
        images: files that the job goes through, and the loop as well.
        rounds: as for :func:`feed`.
        batch_size: images of one forward; None is the job's default.
        model: settings of ``[model]`` other than the defaults.
        timeout_s: seconds for one measurement.
        say: prints a line.
    """
    from pipeline.budget import make_budget
    from pipeline.cluster import this_machine
    from pipeline.config import JobConfig

    source = str(write_corpus(work, images))
    budget = make_budget(JobConfig(batch_size=batch_size), this_machine(), can_grow=False)
    bare = {"source": source, "images": images, "batch_size": budget.batch_size, "model": model}
    job = {"batch_size": budget.batch_size, "chunk_rows": max(budget.batch_size, min(budget.chunk_rows, images // 8))}
    plan: Plan = {
        f"bare loop, {count} at a time": ("forward:loop", {**bare, "streams": count})
        for count in sorted({1, budget.forward_streams})
    }
    loops = list(plan)
    plan["raysight"] = (
        "job:run",
        {"source": source, "dest": str(work / "raysight"), "extractor": "model", "job": job, "model": model},
    )
    # The job's actors have it from the job itself.
    environment = {} if budget.gpus_per_actor else dict.fromkeys(loops, ALLOCATOR)
    results = _rounds(plan, rounds, timeout_s, say, environment)
    steady = {name: [item["steady"] for item in items] for name, items in results.items()}
    best = max(loops, key=lambda name: median(steady[name]))
    rows = [
        [name, f"{images:,}", spread(values, 3), spread(ratios(values, steady[best]), 3)]
        for name, values in steady.items()
    ]
    say("")
    say(
        f"{model}, 518 px, batches of {budget.batch_size}, {budget.threads} threads, {_machine()}, {rounds} rounds:"
        " median (range)"
    )
    say(render(["what", "images", "images/s, steady", "of the better loop"], rows))
    say(f"a forward ran in {median(item['busy'] for item in results['raysight']):.1%} of raysight's time")
    for line in verdict({f"raysight ÷ {best}": (median(ratios(steady["raysight"], steady[best])), _FORWARD_RATIO)}):
        say(line)
    return {"results": results}


def memory(work: Path, sizes: Sequence[tuple[int, int]], timeout_s: float, say: Say) -> dict[str, Any]:
    """The driver's memory over a run, for each (rows, rows of a chunk).

    Args:
        work: folder for the corpus and the outputs.
        sizes: one job for each.
        timeout_s: seconds for one job.
        say: prints a line.
    """
    rows, results = [], []
    for count, chunk_rows in sizes:
        source = str(write_tiny(work, count))
        say(f"{count:,} rows in chunks of {chunk_rows}")
        job = {"chunk_rows": chunk_rows}
        arguments = {"source": source, "dest": str(work / "raysight"), "extractor": "empty", "job": job}
        result = measure("job:run", arguments, timeout_s=timeout_s)
        results.append({"rows": count, "chunk_rows": chunk_rows, **result})
        chunks = -(-count // chunk_rows)
        working = [(done / chunk_rows, mib) for done, mib in result["memory"] if done]
        warm = [point for point in working if point[0] >= chunks / 10] or working
        growth = slope([point for point in working if point[0] >= chunks / 2] or working[-1:]) * 1024
        rows.append(
            [
                f"{count:,}",
                f"{chunks:,}",
                f"{warm[0][1]:.0f}",
                f"{warm[-1][1]:.0f}",
                f"{max(mib for _, mib in result['memory']):.0f}",
                f"{growth:.2f}",
                f"{result['steady']:,.0f}",
            ]
        )
        say(render(_MEMORY_HEADER, rows[-1:]))
    say("")
    say(f"driver's own resident memory, extractor that does nothing, {_machine()}")
    say(render(_MEMORY_HEADER, rows))
    return {"results": results}


_MEMORY_HEADER = [
    "rows",
    "chunks",
    "MiB at 10 %",
    "at the end",
    "at most",
    "KiB a chunk, second half",
    "images/s, steady",
]


def _rounds(
    plan: Plan,
    rounds: int,
    timeout_s: float,
    say: Say,
    environment: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    for number in range(rounds):
        for name, (where, arguments) in plan.items():
            result = measure(where, arguments, timeout_s=timeout_s, environment=(environment or {}).get(name))
            result.pop("memory", None)
            results[name].append(result)
            say(f"round {number + 1}: {name}: {result['steady']:,.2f} images/s")
    return results


def _machine() -> str:
    return f"{len(os.sched_getaffinity(0))} cores"
