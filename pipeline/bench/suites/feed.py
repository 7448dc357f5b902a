"""How fast the model is fed, against the bare limit and against what people do today."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import write_corpus
from pipeline.bench.table import ratios, render, spread, verdict
from pipeline.budget import ALLOCATOR

if TYPE_CHECKING:
    from pipeline.bench.suite import Bench, Plan

_FAST_DEVICE = {"batch_size": 64, "chunk_rows": 256}
"""The slice stands for a device that never keeps anybody waiting: a GPU's batches, a GPU's chunks in small."""

_LIMITS = ("limit, threads", "limit, processes")
_GUIDE_RATIO, _DATALOADER_RATIO, _LIMIT_RATIO = 10.0, 3.0, 0.85


@dataclass(frozen=True, slots=True)
class Sizes:
    """Files that raysight and the limits go through, and files of the slower peers."""

    images: int
    peer_images: int


_QUICK, _FULL = Sizes(6000, 500), Sizes(30_000, 2000)


def run(bench: Bench) -> dict[str, Any]:
    """The measurement in its two sizes."""
    return measure_feed(bench, _FULL if bench.full else _QUICK)


def measure_feed(bench: Bench, sizes: Sizes) -> dict[str, Any]:
    """raysight, its limit and its peers, each over the first so many files of one corpus."""
    source, few = str(write_corpus(bench.work, sizes.images)), str(write_corpus(bench.work, sizes.peer_images))
    peer = {"source": few, "images": sizes.peer_images}
    bare = {"source": source, "images": sizes.images}
    plan: Plan = {
        "limit, threads": ("limit:threads", bare),
        "limit, processes": ("limit:processes", bare),
        "raysight": (
            "job:run",
            {"source": source, "dest": str(bench.work / "raysight"), "extractor": "slice", "job": _FAST_DEVICE},
        ),
        "Ray Data, as its guide": ("peers:guide", {**peer, "dest": str(bench.work / "guide")}),
        "torch DataLoader": ("peers:dataloader", {**peer, "dest": str(bench.work / "dataloader")}),
    }
    results = bench.rounds(plan, dict.fromkeys(_LIMITS, ALLOCATOR))  # the limits get what raysight's actors get
    for items in results.values():
        for item in items:
            item.pop("memory", None)
    steady = {name: [item["steady"] for item in items] for name, items in results.items()}
    limit = max(_LIMITS, key=lambda name: median(steady[name]))
    rows = [
        [
            name,
            f"{items[0].get('images', sizes.images):,}",
            spread(steady[name], 0),
            spread([item["whole"] for item in items], 0) if "whole" in items[0] else "",
            spread(ratios(steady["raysight"], steady[name]), 2),
        ]
        for name, items in results.items()
    ]
    bench.say("")
    bench.say(f"model replaced by a slice, 500×375 JPEGs, 518 px, {bench.conditions()}")
    bench.say(render(["what", "images", "images/s, steady", "images/s, whole run", "raysight ÷ this"], rows))
    asked = {
        "Ray Data, as its guide": _GUIDE_RATIO,
        "torch DataLoader": _DATALOADER_RATIO,
        limit: _LIMIT_RATIO,
    }
    goals = {
        f"raysight ÷ {name}": (median(ratios(steady["raysight"], steady[name])), least) for name, least in asked.items()
    }
    for line in verdict(goals):
        bench.say(line)
    return {"results": results, "limit": limit}
