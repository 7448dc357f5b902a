"""What the errors of the file system mean."""

from __future__ import annotations

from pipeline.errors import ForbiddenError, NotFoundError, StorageError, UnavailableError

_KINDS: dict[type[OSError], type[StorageError]] = {
    FileNotFoundError: NotFoundError,
    NotADirectoryError: NotFoundError,
    PermissionError: ForbiddenError,
}


def translate(error: OSError, where: str) -> StorageError:
    """The error of this project that says the same.

    Args:
        error: of the file system.
        where: the path or URI it is about.
    """
    kind = _KINDS.get(type(error), UnavailableError)
    return kind(f"{where}: {error.strerror or error}")
