"""A folder as a store: atomic, durable writes; plain reads."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.errors import ForbiddenError, NotFoundError, RejectError, StorageError, UnavailableError
from pipeline.storage import Fetched, ObjectInfo, read_judgement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PARTIAL = ".raysight-partial-"
_READ_THREADS = 8


class LocalStore:
    """Files below a folder.

    A key is a path relative to the folder. The URI of a file is its absolute path; a name that is not valid UTF-8
    becomes a percent-encoded ``file://`` URI, so that every name can stand in a table.
    """

    def __init__(self, url: str) -> None:
        path = os.fsdecode(unquote_to_bytes(url.removeprefix("file://"))) if url.startswith("file://") else url
        self._folder = Path(path).expanduser().absolute()

    @property
    def root(self) -> str:
        return os.path.join(self._folder, "")  # noqa: PTH118 — the trailing slash is wanted, also of "/"

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Raises NotFoundError when the folder itself does not exist."""
        if not self._folder.is_dir():
            raise NotFoundError(f"there is no folder {self._folder}")
        top, _, start = prefix.rpartition("/")
        pending = [self._folder / top] if (self._folder / top).is_dir() else []
        first = True
        while pending:
            folder = pending.pop()
            with os.scandir(folder) as entries:
                # Sorted, so that the same folder gives the same manifest on every machine.
                ordered = sorted(entries, key=lambda entry: entry.name)
            below = []
            for entry in ordered:
                if first and not entry.name.startswith(start):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(Path(entry.path))
                elif entry.is_file() and not entry.name.startswith(_PARTIAL):
                    stat = entry.stat()
                    key = str(Path(entry.path).relative_to(self._folder))
                    yield ObjectInfo(key, stat.st_size, _version(stat))
            pending.extend(reversed(below))
            first = False

    def get(self, key: str) -> bytes:
        try:
            return (self._folder / key).read_bytes()
        except OSError as error:
            raise _translate(error, self.uri(key)) from error

    def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        if not keys:
            return []
        with ThreadPoolExecutor(min(_READ_THREADS, len(keys))) as pool:
            return list(pool.map(lambda key: self._fetch(key, max_bytes), keys))

    def _fetch(self, key: str, max_bytes: int) -> Fetched | RejectError:
        try:
            with (self._folder / key).open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_size > max_bytes:
                    return read_judgement("TooManyBytes", self.uri(key))
                return Fetched(file.read(), _version(stat))
        except FileNotFoundError:
            return read_judgement("NotFound", self.uri(key))
        except (PermissionError, IsADirectoryError):
            return read_judgement("Forbidden", self.uri(key))
        except OSError as error:
            return RejectError("read", "Unavailable", f"{error.strerror}: {self.uri(key)}")

    def put(self, key: str, data: bytes) -> None:
        self._write(key, data, replace=True)

    def put_file(self, key: str, path: Path, *, replace: bool = True) -> bool:
        return self._write(key, path, replace=replace)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._write(key, data, replace=False)

    def _write(self, key: str, content: bytes | Path, *, replace: bool) -> bool:
        target = self._folder / key
        # The name tells hosts, processes and threads apart, so that two writers never share a partial file.
        partial = target.with_name(f"{_PARTIAL}{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    if isinstance(content, Path):
                        with content.open("rb") as source:
                            while block := source.read(1 << 20):
                                file.write(block)
                    else:
                        file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                if replace:
                    partial.replace(target)
                else:
                    try:
                        os.link(partial, target)
                    except FileExistsError:
                        return False
            finally:
                partial.unlink(missing_ok=True)
            _sync_folder(target.parent)
        except OSError as error:
            raise _translate(error, self.uri(key)) from error
        return True

    def delete(self, keys: Sequence[str]) -> None:
        folders = set()
        for key in keys:
            path = self._folder / key
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _translate(error, self.uri(key)) from error
            folders.add(path.parent)
        for folder in folders - {self._folder}:
            # A folder that others still write to is not empty, and stays.
            if folder.is_dir() and not any(folder.iterdir()):
                try:
                    folder.rmdir()
                except OSError as error:
                    if folder.exists() and not any(folder.iterdir()):
                        raise _translate(error, str(folder)) from error

    def uri(self, key: str) -> str:
        path = os.path.join(self._folder, key)  # noqa: PTH118 — a hot path
        try:
            path.encode()
        except UnicodeEncodeError:
            return "file://" + quote_from_bytes(os.fsencode(path))
        return path

    def key(self, uri: str) -> str:
        path = os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))) if uri.startswith("file://") else uri
        return path.removeprefix(self.root)


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut; the file's own fsync does not cover its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translate(error: OSError, where: str) -> StorageError:
    kinds: dict[type[OSError], type[StorageError]] = {FileNotFoundError: NotFoundError, PermissionError: ForbiddenError}
    kind = kinds.get(type(error), UnavailableError)
    return kind(f"{where}: {error.strerror or error}")
