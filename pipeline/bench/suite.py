"""What a suite of measurements is, and what it is given to work with."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.bench.runner import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Plan = dict[str, tuple[str, dict[str, Any]]]
"""Name → (``module:function``, its arguments), as :func:`pipeline.bench.runner.measure` takes them."""

_QUICK_ROUNDS, _FULL_ROUNDS = 1, 3


@dataclass(frozen=True, slots=True)
class Bench:
    """How to measure.

    Attributes:
        work: folder for corpora and outputs.
        full: the long form; the quick one shows that all works, and roughly how fast.
        timeout_s: seconds for one measurement.
        say: prints a line or a table.
    """

    work: Path
    full: bool = False
    timeout_s: float = 3600.0
    say: Callable[[str], None] = print

    def rounds(self, plan: Plan, environment: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, list[Any]]:
        """Measures everything once, in turn, as many times over as the form has rounds; answers by name.

        Args:
            plan: what to measure.
            environment: for some names, what is added to the process's environment.
        """
        results: dict[str, list[Any]] = {name: [] for name in plan}
        for number in range(_FULL_ROUNDS if self.full else _QUICK_ROUNDS):
            for name, (where, arguments) in plan.items():
                extra = (environment or {}).get(name)
                result = measure(where, arguments, timeout_s=self.timeout_s, environment=extra)
                results[name].append(result)
                rate = f": {result['steady']:,.2f} images/s" if "steady" in result else ""
                self.say(f"round {number + 1}: {name}{rate}")
        return results

    def conditions(self, rounds: int | None = None) -> str:
        """The machine and the form, for the line above a table.

        Args:
            rounds: of the suite, where they are not those of :meth:`rounds`.
        """
        cores = len(os.sched_getaffinity(0))
        rounds = rounds or (_FULL_ROUNDS if self.full else _QUICK_ROUNDS)
        form = f"{rounds} rounds: median (range)" if rounds > 1 else "one round"
        return f"{cores} core{'s' * (cores != 1)}, {'' if self.full else 'quick form, '}{form}"


@dataclass(frozen=True, slots=True)
class Suite:
    """A name on the command line, and where its code is: nothing is imported before it runs.

    Attributes:
        name: on the command line.
        about: one line for the help.
        where: ``module:function``; takes a :class:`Bench` and returns all figures, as plain JSON.
        by_name: its quick form takes minutes, and is left out where no suite is named.
    """

    name: str
    about: str
    where: str
    by_name: bool = False

    def run(self, bench: Bench) -> dict[str, Any]:
        """Measures, and prints tables."""
        module, _, function = self.where.partition(":")
        figures: dict[str, Any] = getattr(importlib.import_module(module), function)(bench)
        return figures
