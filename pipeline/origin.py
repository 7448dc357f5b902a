"""What a source is: a folder or prefix, one image, or a table of URIs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.decode import SUFFIXES
from pipeline.errors import UsageError
from pipeline.local import LocalStore
from pipeline.storage import open_readable, scheme, split_uri
from pipeline.table import SUFFIXES as TABLE_SUFFIXES
from pipeline.table import table_format

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.config import StorageConfig
    from pipeline.storage import Readable


class Kind(Enum):
    """What a source is."""

    PREFIX = "prefix"
    OBJECT = "object"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Origin:
    """A source.

    Attributes:
        kind: what it is.
        name: its URI as the manifest has it.
        store: of a prefix the objects below it; else the store that holds the object or the table.
        key: of the object or the table there; empty for a prefix.
        local: path of the table where it is a local file.
    """

    kind: Kind
    name: str
    store: Readable
    key: str = ""
    local: Path | None = None


def resolve(url: str, storage: StorageConfig) -> Origin:
    """Tells what a source is: by its suffix, and by what is there where that is not enough.

    Raises:
        UsageError: there is no such file or table, or it is a web page.
        StorageError: the store cannot be reached.
    """
    match scheme(url):
        case "" | "file":
            return _resolve_path(url, storage)
        case "http" | "https":
            return _resolve_web(url, storage)
    if table_format(url):
        return _resolve_object(url, Kind.TABLE, storage)
    if url.lower().endswith(SUFFIXES):
        origin = _resolve_object(url, Kind.OBJECT, storage)
        (found,) = origin.store.look_up([origin.key])
        if found is not None and found.seen:
            return origin
    store = open_readable(url, storage)
    return Origin(Kind.PREFIX, store.root, store)


def roots(sources: Iterable[str]) -> list[str]:
    """The sources that objects lie below, and the folders of local tables and files. Makes no request."""
    found = []
    for url in sources:
        if scheme(url) in ("", "file"):
            path = Path(LocalStore(url).root)
            found.append(str(path if not path.is_file() else path.parent))
        elif scheme(url) not in ("http", "https") and not url.lower().endswith((*TABLE_SUFFIXES, *SUFFIXES)):
            found.append(url)
    return found


def _resolve_path(url: str, storage: StorageConfig) -> Origin:
    store = open_readable(url, storage)
    path = Path(store.root)
    if not path.is_file():
        if table_format(url) and not path.exists():
            raise UsageError(f"there is no table {path}")
        return Origin(Kind.PREFIX, store.root, store)
    parent = LocalStore(str(path.parent))
    kind, local = (Kind.TABLE, path) if table_format(str(path)) else (Kind.OBJECT, None)
    return Origin(kind, parent.uri(path.name), parent, path.name, local)


def _resolve_web(url: str, storage: StorageConfig) -> Origin:
    if urlsplit(url).path.endswith("/") or not urlsplit(url).path:
        raise UsageError(f"{url}: a web server cannot be listed; give the URL of an image, or a table of URLs")
    return _resolve_object(url, Kind.TABLE if table_format(url) else Kind.OBJECT, storage)


def _resolve_object(url: str, kind: Kind, storage: StorageConfig) -> Origin:
    root, uri = split_uri(url)
    store = open_readable(root, storage)
    return Origin(kind, uri, store, store.key(uri))
