"""How fast the model is fed, against the bare limit and against what people do today."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.bench.corpus import LARGE_SIZES, SIZE, write_corpus, write_large
from pipeline.bench.daft_venv import daft_python
from pipeline.bench.object_server import BUCKET, serving
from pipeline.bench.table import ratios, render, spread, verdict
from pipeline.budget import ALLOCATOR

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.bench.suite import Bench, Plan
    from pipeline.config import Preset

_BATCH = 64
"""The slice stands for a device that never keeps anybody waiting: a GPU's batches."""

_LIMITS = ("limit, threads", "limit, processes")
_LIMIT_RATIO = 0.85
_PEER_RATIOS = {"Ray Data, as its guide": 10.0, "torch DataLoader": 3.0, "Daft": 3.0}


@dataclass(frozen=True, slots=True)
class Case:
    """What is fed.

    Attributes:
        images: files that raysight and the limits go through.
        peer_images: files of the slower peers.
        size: width and height of each, in pixels.
        preset: the crop: 518 pixels with ``timm``, 224 with ``dinov2-224``.
        chunk_rows: images of a chunk; the default is what an actor with a GPU has.
    """

    images: int
    peer_images: int
    size: tuple[int, int] = SIZE
    preset: Preset = "timm"
    chunk_rows: int = 1024


_QUICK = (Case(3000, 300, chunk_rows=256),)
_FULL = (
    Case(30_000, 2000),
    Case(30_000, 2000, preset="dinov2-224"),
    *(
        Case(6_000_000_000 // pixels, 1_200_000_000 // pixels, size, preset, chunk_rows=64)
        for size, pixels in ((size, size[0] * size[1]) for size in LARGE_SIZES)
        for preset in ("timm", "dinov2-224")
    ),
)


def run(bench: Bench) -> dict[str, Any]:
    """Every case, one after another."""
    cases = _FULL if bench.full else _QUICK
    return {f"{case.size[0]}×{case.size[1]}, {case.preset}": measure_feed(bench, case) for case in cases}


def measure_feed(bench: Bench, case: Case) -> dict[str, Any]:
    """raysight from a folder and from a bucket, its limit and its peers, each over the first so many files."""
    source, few = (_corpus(bench.work, count, case.size) for count in (case.images, case.peer_images))
    bare = {"source": str(source), "images": case.images, "preset": case.preset}
    peer = {"source": str(few), "images": case.peer_images, "preset": case.preset}
    job = {
        "extractor": "slice",
        "job": {"batch_size": _BATCH, "chunk_rows": case.chunk_rows},
        "model": {"preset": case.preset},
    }
    dest = bench.work / "raysight"
    plan: Plan = {
        "limit, threads": ("limit:threads", bare),
        "limit, processes": ("limit:processes", bare),
        "raysight": ("job:run", {**job, "source": str(source), "dest": str(dest)}),
        "raysight, from a bucket": ("job:run", {**job, "source": f"s3://{BUCKET}/", "dest": f"{dest}-bucket"}),
        "Ray Data, as its guide": ("peers:guide", {**peer, "dest": str(bench.work / "guide")}),
        "torch DataLoader": ("peers:dataloader", {**peer, "dest": str(bench.work / "dataloader")}),
    }
    if (python := daft_python(bench.work)) is None:
        bench.say("Daft is left out: it could not be installed")
    else:
        plan["Daft"] = ("peers:daft", {**peer, "dest": str(bench.work / "daft-out"), "python": python})
    with ExitStack() as stack:
        _, bucket = stack.enter_context(serving(source))
        # The limits get what raysight's actors get.
        results = bench.rounds(plan, {**dict.fromkeys(_LIMITS, ALLOCATOR), "raysight, from a bucket": bucket})
    for items in results.values():
        for item in items:
            item.pop("memory", None)
    steady = {name: [item["steady"] for item in items] for name, items in results.items()}
    limit = max(_LIMITS, key=lambda name: median(steady[name]))
    rows = [
        [
            name,
            f"{items[0].get('images', case.images):,}",
            spread(steady[name], 0),
            spread([item["whole"] for item in items], 0) if "whole" in items[0] else "",
            spread(ratios(steady["raysight"], steady[name]), 2),
        ]
        for name, items in results.items()
    ]
    bench.say("")
    side = {"timm": 518, "dinov2-224": 224}[case.preset]
    width, height = case.size
    bench.say(f"model replaced by a slice, {width}×{height} JPEGs, {side} px ({case.preset}), {bench.conditions()}")
    bench.say(render(["what", "images", "images/s, steady", "images/s, whole run", "raysight ÷ this"], rows))
    asked = {limit: _LIMIT_RATIO, **{name: least for name, least in _PEER_RATIOS.items() if name in steady}}
    goals = {
        f"raysight ÷ {name}": (median(ratios(steady["raysight"], steady[name])), least) for name, least in asked.items()
    }
    for line in verdict(goals):
        bench.say(line)
    return {"results": results, "limit": limit}


def _corpus(work: Path, images: int, size: tuple[int, int]) -> Path:
    return write_corpus(work, images) if size == SIZE else write_large(work, images, size)
