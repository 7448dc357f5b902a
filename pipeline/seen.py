"""Which URIs came before: sixteen bytes for each, so that 10⁸ of them fit into 1.6 GB."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_DIGEST_BYTES = 16  # two of 10⁸ collide with a probability below 10⁻²²


class Seen:
    """A set of strings that only grows. Holds digests, in sorted arrays of which each is twice the next one or more."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.bytes_]] = []

    def add(self, names: Sequence[str]) -> list[bool]:
        """Adds strings, and says of each whether it is there for the first time (also among these)."""
        digests = np.array([_digest(name) for name in names], dtype=f"S{_DIGEST_BYTES}")
        unique, first = np.unique(digests, return_index=True)
        new = np.ones(len(unique), dtype=bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            new &= run[places] != unique
        self._append(unique[new])
        fresh = np.zeros(len(digests), dtype=bool)
        fresh[first[new]] = True
        return [bool(item) for item in fresh]

    def _append(self, run: NDArray[np.bytes_]) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
