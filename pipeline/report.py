"""What a run's log says: figures an image, what the run was bound by, and what a million images cost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.runlog import RUNS, STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.storage import Store

_CALLS_PER_ACTOR = 2  # chunks that an actor works on at a time, each of which commits by itself
_SATURATED = 0.5  # busy fraction below which nothing can be said to bound the run

_ADVICE = {
    "forward": "a faster device, a lower --precision or a smaller model would help",
    "prepare": "more or faster CPUs an actor (--cpus-per-actor) would help",
    "read": "the store is slow; more [job] read_tasks_per_actor or [storage] max_in_flight may help",
    "commit": "the store takes long to write; larger chunks (--chunk-rows) may help",
}


@dataclass(frozen=True, slots=True)
class Bound:
    """What limits a run.

    Attributes:
        stage: ``read``, ``prepare``, ``forward`` or ``commit``; None where nothing was busy enough to tell.
        reason: for a person.
    """

    stage: str | None
    reason: str


def load_runs(dest: Store) -> dict[str, dict[str, Any]]:
    """Name → log of every run on record, the oldest first.

    Raises:
        UsageError: there is none, or one that this version cannot read.
    """
    runs = {}
    for item in dest.list_objects(RUNS):
        try:
            run = json.loads(dest.get(item.key))
            missing = {"started", "outcome", "error", "budget", "requests", "actor_seconds", *_sums()} - run.keys()
        except (ValueError, AttributeError):
            missing = {"JSON"}
        if missing:
            raise UsageError(f"{dest.uri(item.key)} is not of this version: it lacks {', '.join(sorted(missing))}")
        runs[item.key.removeprefix(RUNS).removesuffix(".json")] = run
    if not runs:
        raise UsageError(f"{dest.root} has no run on record: no _raysight/run-*.json there")
    return dict(sorted(runs.items(), key=lambda entry: (entry[1]["started"], entry[0])))


def choose(runs: Mapping[str, dict[str, Any]], which: str) -> dict[str, dict[str, Any]]:
    """The runs meant by ``latest``, ``all``, or a name (or how one begins).

    Raises:
        UsageError: no run has this name, or several begin with it.
    """
    if which == "all":
        return dict(runs)
    chosen = [list(runs)[-1]] if which == "latest" else [name for name in runs if name.startswith(which)]
    if len(chosen) != 1:
        raise UsageError(f"--run {which}: {len(chosen)} runs have that name; there are {', '.join(runs)}")
    return {chosen[0]: runs[chosen[0]]}


def _sums() -> list[str]:
    return [f"{stage}_{kind}" for stage in STAGES for kind in ("seconds", "cpu_seconds")]


def figures(name: str, run: Mapping[str, Any], dollars_per_hour: float | None) -> dict[str, Any]:
    """The report of one run, as documented in docs/output.md; null where there is nothing to divide by."""
    rows, rejects = run["rows"], sum(run["rejects"].values())
    busy = busy_fractions(run)
    limit = bound(run, busy)
    rate = run["images_per_second"]
    return {
        "run": name,
        **{
            key: run[key]
            for key in ("started", "seconds", "outcome", "error", "host", "fingerprint", "images", "skipped")
        },
        "rows": rows - rejects,
        "rejects": rejects,
        "rejects_by_reason": dict(Counter(run["rejects"]).most_common()),
        **{key: run[key] for key in ("chunks", "retries", "images_per_second", "actors", "actor_seconds", "budget")},
        # Early logs lack these.
        "batch_sizes": run.get("batch_sizes", {}),
        "batch_sizes_left": run.get("batch_sizes_left", run.get("batch_sizes", {})),
        "stages": {
            stage: {
                "seconds_per_image": _ratio(run[f"{stage}_seconds"], rows),
                "cpu_ms_per_image": _ratio(1000 * run[f"{stage}_cpu_seconds"], rows),
            }
            for stage in STAGES
        },
        **{key: run[key] for key in ("bytes_read", "bytes_written", "requests")},
        "busy": busy,
        "bound_by": limit.stage,
        "bound_because": limit.reason,
        "dollars_per_million_images": (
            _ratio(dollars_per_hour * 1e6 / 3600, rate) if dollars_per_hour is not None else None
        ),
    }


def busy_fractions(run: Mapping[str, Any]) -> dict[str, float] | None:
    """How much of the time in which its actors had work each resource of a run was in use, 0 to 1.

    Returns:
        ``device`` (held by a forward), ``cpus`` (those of actors and their reads, all stages), ``decode_threads`` (on a
        CPU), ``read_tasks`` (waiting for the store, or not), ``commits`` (likewise); None where no chunk was done.
    """
    seconds, budget = run["actor_seconds"], run["budget"]
    if not seconds or not budget:
        return None
    busy = {
        "device": (run["forward_seconds"], 1),
        "cpus": (sum(run[f"{stage}_cpu_seconds"] for stage in STAGES), budget["cpus_per_actor"]),
        "decode_threads": (run["prepare_cpu_seconds"], budget["decode_threads"]),
        "read_tasks": (run["read_seconds"], budget["read_tasks_per_actor"]),
        "commits": (run["commit_seconds"], _CALLS_PER_ACTOR),
    }
    # A run of one chunk reads before its actor has any work, so fractions above 1 can come out.
    return {name: round(min(1.0, used / (seconds * number)), 4) for name, (used, number) in busy.items()}


def bound(run: Mapping[str, Any], busy: Mapping[str, float] | None) -> Bound:
    """The stage whose resource was used most, if that is more than half of the time.

    Without a GPU forwards and decoding share the CPUs, and the stage that takes most of them counts; it is also named
    where the CPUs were idle for this run because others had them.
    """
    if busy is None:
        return Bound(None, "no chunk was done")
    on_gpu = run["budget"]["gpus_per_actor"] > 0
    greediest = max(STAGES, key=lambda stage: run[f"{stage}_cpu_seconds"])
    candidates = {
        "read": (busy["read_tasks"], "the read tasks"),
        "commit": (busy["commits"], "commits"),
    }
    if on_gpu:
        candidates["forward"] = (busy["device"], "the device")
        candidates["prepare"] = (busy["decode_threads"], "the decode threads")
    else:
        share = _percent(_ratio(run[f"{greediest}_cpu_seconds"], sum(run[f"{stage}_cpu_seconds"] for stage in STAGES)))
        candidates[greediest] = (busy["cpus"], f"the CPUs, of which {greediest} took {share},")
    stage, (most, what) = max(candidates.items(), key=lambda entry: entry[1][0])
    others = ", ".join(f"{name.replace('_', ' ')} {_percent(value)}" for name, value in busy.items())
    on_cpu = _share_on_cpu(run)
    if most < _SATURATED and not on_gpu and on_cpu < _SATURATED:
        return Bound(
            greediest,
            f"the threads that decode and compute had a CPU for {_percent(on_cpu)} of their time ({others}): other"
            " processes or a quota take the CPUs",
        )
    if most < _SATURATED:
        return Bound(None, f"nothing was busy for half of the time ({others}): a short run, or one that waited")
    verb = "was" if what == "the device" else "were"
    return Bound(stage, f"{what} {verb} busy {_percent(most)} of the time ({others}); {_ADVICE[stage]}")


def _share_on_cpu(run: Mapping[str, Any]) -> float:
    """CPU seconds of decoding and of forwards on a CPU, by the wall seconds that their threads were at it."""
    wall = run["prepare_seconds"] + run["forward_seconds"] * run["budget"]["forward_streams"]
    cpu: float = run["prepare_cpu_seconds"] + run["forward_cpu_seconds"]
    return cpu / wall if wall else 1.0


def totals(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several runs came to together."""
    summed = ("rows", "rejects", "chunks", "retries", "bytes_read", "bytes_written", "seconds")
    return {
        "runs": len(reports),
        **{name: round(sum(report[name] for report in reports), 3) for name in summed},
        **{
            name: dict(sum((Counter(report[name]) for report in reports), Counter[str]()))
            for name in ("rejects_by_reason", "requests")
        },
    }


def _ratio(value: float, by: float) -> float | None:
    return round(value / by, 6) if by else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
