"""What the errors of the file system mean."""

from __future__ import annotations

import errno

from pipeline.errors import ForbiddenError, NotFoundError, StorageError, UnavailableError

_KINDS: dict[type[OSError], type[StorageError]] = {
    FileNotFoundError: NotFoundError,
    NotADirectoryError: NotFoundError,
    PermissionError: ForbiddenError,
}

_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""No other try helps."""


def translate(error: OSError, where: str) -> StorageError:
    """The error of this project that says the same.

    Args:
        error: of the file system.
        where: the path or URI it is about.
    """
    kind = StorageError if error.errno in _LASTING else _KINDS.get(type(error), UnavailableError)
    return kind(f"{where}: {error.strerror or error}")
