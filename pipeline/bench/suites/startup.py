"""What there is to wait for before the work: each command on next to nothing, and a run of a hundred images."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from pipeline.bench.commands import time_command
from pipeline.bench.corpus import write_corpus
from pipeline.bench.table import render, spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.bench.suite import Bench

_IMAGES = 100
_MODEL = ("--model", "test_vit", "--weights", "random:0", "--precision", "fp32")
"""timm's own model for tests, a millisecond an image: what is left is the cost of a run whatever it computes."""

_QUICK_ROUNDS, _FULL_ROUNDS = 1, 5
_HEADER = ["command", "seconds", "CPU s", "imports"]


def run(bench: Bench) -> dict[str, Any]:
    """In turn: help and settings, one image without Ray, a run, the same again with nothing to do, and its check."""
    source, dest = str(write_corpus(bench.work, _IMAGES)), str(bench.work / "startup")
    commands = {
        "--help": ("--help",),
        "config": ("config",),
        "embed, one image": ("embed", f"{source}/0000000.jpg", *_MODEL),
        f"extract, {_IMAGES} images": ("extract", source, dest, *_MODEL),
        "extract again, nothing to do": ("extract", source, dest, *_MODEL),
        "verify --sample 0": ("verify", dest, "--sample", "0"),
    }
    return time_commands(bench, commands, dest, _FULL_ROUNDS if bench.full else _QUICK_ROUNDS)


def time_commands(bench: Bench, commands: Mapping[str, Sequence[str]], dest: str, rounds: int) -> dict[str, Any]:
    """Each command, in turn, over several rounds, each on a new ``dest``."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(rounds):
        shutil.rmtree(dest, ignore_errors=True)
        for name, arguments in commands.items():
            results[name].append(time_command(arguments, bench.timeout_s))
    rows = [
        [
            name,
            spread([item["seconds"] for item in items], 2),
            spread([item["cpu_seconds"] for item in items], 2),
            ", ".join(items[0]["imports"]) or "–",
        ]
        for name, items in results.items()
    ]
    bench.say(f"model test_vit, {bench.conditions(rounds)}")
    bench.say(render(_HEADER, rows))
    return {"results": results}
