"""What a store's failure means for one object: a look-up that finds nothing, or a reject row; worded alike."""

from __future__ import annotations

from pipeline.errors import ForbiddenError, NotFoundError, RejectError, StorageError
from pipeline.store import ObjectInfo

_MESSAGES = {
    "NotFound": "the object is not there",
    "Forbidden": "reading the object is not allowed with these credentials",
    "Changed": "the object changed after it was listed",
    "TooManyBytes": "the object is larger than max_bytes",
}


def rejection(name: str, uri: str) -> RejectError:
    """The reject row for an object that cannot be read: NotFound, Forbidden, Changed or TooManyBytes."""
    return RejectError("read", name, f"{_MESSAGES[name]}: {uri}")


def judge_fetch(failure: StorageError, uri: str) -> RejectError:
    """What stands in the place of an object whose fetch failed."""
    match failure:
        case NotFoundError():
            return rejection("NotFound", uri)
        case ForbiddenError():
            return rejection("Forbidden", uri)
    return RejectError("read", "Unavailable", str(failure))


def judge_look_up(failure: StorageError, key: str) -> ObjectInfo | None:
    """What a failed look-up says of an object. Raises the failure where it says nothing of this object alone."""
    match failure:
        case NotFoundError():
            return None
        case ForbiddenError():
            return ObjectInfo.unseen(key)
    raise failure
