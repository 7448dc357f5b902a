"""Files that are there as a whole or not at all, also after a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

PARTIAL = ".raysight-partial-"
"""How the name of a file begins until it is whole."""

_FOLDER_ATTEMPTS = 100
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def write(target: Path, content: bytes | Path, *, replace: bool, unless: Callable[[], bool] = lambda: False) -> bool:
    """Writes a file, syncs it, and only then gives it its name.

    Args:
        target: where; its folder is made.
        content: bytes, or a file to copy.
        replace: False leaves an existing file alone.
        unless: asked at the last moment; True leaves everything as it is.

    Returns:
        False when there was a file already, and ``replace`` is False, or when ``unless`` said so.

    Raises:
        OSError: nothing was written.
        UnsupportedError: ``replace`` is False, and this file system has no hard links.
    """
    # The name tells hosts, processes and threads apart, so that two writers never share a partial file.
    partial = target.with_name(f"{PARTIAL}{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with _create(partial) as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if unless():
            return False
        if replace:
            partial.replace(target)
        elif not _link(partial, target):
            return False
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return True


def _create(partial: Path) -> BinaryIO:
    """Opens a new file, in a folder that somebody may just be deleting because it was empty."""
    for _ in range(_FOLDER_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            partial.parent.mkdir(parents=True, exist_ok=True)
            return partial.open("xb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    return partial.open("xb")


def _link(partial: Path, target: Path) -> bool:
    try:
        os.link(partial, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise UnsupportedError(f"{target}: this file system has no hard links") from error
        raise
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut; the file's own fsync does not cover its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
