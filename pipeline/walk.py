"""The files below a folder, in the order of their names."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pipeline.local_errors import translate

if TYPE_CHECKING:
    from collections.abc import Iterator


def walk(folder: str, prefix: str) -> Iterator[os.DirEntry[str]]:
    """Files whose path below ``folder`` starts with ``prefix``, half-written ones too.

    Sorted, so that the same folder gives the same manifest on every machine. Links to files count as files; links to
    folders are not followed.

    Raises:
        ForbiddenError: a folder may not be read.
    """
    top, _, start = prefix.rpartition("/")
    pending = [os.path.join(folder, top)]  # noqa: PTH118 — strings: a hot path
    first = True
    while pending:
        below = []
        for entry in sorted(_entries(pending.pop()), key=lambda entry: entry.name):
            if first and not entry.name.startswith(start):
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            elif _is_file(entry):
                yield entry
        pending.extend(reversed(below))
        first = False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []  # a prefix that nothing has, or a folder deleted since
    except OSError as error:
        raise translate(error, folder) from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether there is a file, or a link to one. A link to nothing or in a circle is none."""
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise translate(error, entry.path) from error
