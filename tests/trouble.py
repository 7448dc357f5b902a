"""Trouble in a task of Ray's that rewrites a shard."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from pipeline.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.storage import Store


class Troubled:
    """A store whose in-place rewrites meet trouble: ``the store fails`` (``once``), or ``the process dies once``.

    Args:
        store: the store behind it.
        trouble: what happens.
        marker: a file that says that it has happened.
    """

    def __init__(self, store: Store, trouble: str, marker: Path) -> None:
        self._store = store
        self._trouble = trouble
        self._marker = marker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def replace_file(self, key: str, path: Path, version: str) -> bool:
        happened = self._marker.exists()
        self._marker.touch()
        if self._trouble == "the process dies once" and not happened:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._trouble == "the store fails" or (self._trouble == "the store fails once" and not happened):
            raise UnavailableError("the store is down")
        return self._store.replace_file(key, path, version)


def retire_with_trouble(dest: Store, task: Callable[[Any], None], trouble: str, marker: Path) -> None:
    task(Troubled(dest, trouble, marker))
