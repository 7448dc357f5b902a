"""A folder as a store: atomic, durable writes; plain reads."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline import atomic
from pipeline.atomic import PARTIAL
from pipeline.errors import NotFoundError, RejectError, UnsupportedError, UsageError
from pipeline.judgement import judge_fetch, judge_look_up, rejection
from pipeline.local_errors import translate
from pipeline.store import Fetched, ObjectInfo
from pipeline.walk import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_READ_THREADS = 8
_SLOW_READ_S = 0.001  # of a file: a disk that turns or a network, worth threads, which cost three times the CPU


class LocalStore:
    """Files below a folder.

    A key is a path relative to the folder. The URI of a file is its absolute path; a name that is not valid UTF-8
    becomes a percent-encoded ``file://`` URI, so that every name can stand in a table.
    """

    def __init__(self, url: str) -> None:
        path = os.fsdecode(unquote_to_bytes(url.removeprefix("file://"))) if url.startswith("file://") else url
        if not path:
            raise UsageError("a path is empty: a variable of the shell that is not set?")  # else the current folder
        self._folder = Path(path).expanduser().absolute()

    @property
    def root(self) -> str:
        return os.path.join(self._folder, "")  # noqa: PTH118 — the trailing slash is wanted, also of "/"

    def check(self, *, missing_ok: bool = False) -> None:
        if self._folder.exists():
            if not self._folder.is_dir():
                raise UsageError(f"{self._folder} is not a folder")
        elif not missing_ok:
            raise UsageError(f"there is no folder {self._folder}")
        else:
            above = next(folder for folder in self._folder.parents if folder.exists())
            if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
                reason = "may not be written" if above.is_dir() else "is not a folder"
                raise UsageError(f"the folder {self._folder} cannot be made: {above} {reason}")

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As :func:`pipeline.walk.walk`.

        Raises:
            NotFoundError: the folder itself does not exist.
            ForbiddenError: a folder below may not be read.
        """
        if not self._folder.is_dir():
            raise NotFoundError(f"there is no folder {self._folder}")
        for entry in walk(str(self._folder), prefix):
            if not entry.name.startswith(PARTIAL):
                try:
                    stat = entry.stat()
                except FileNotFoundError:
                    continue  # deleted since
                yield ObjectInfo(entry.path[len(self.root) :], stat.st_size, _version(stat))

    def get(self, key: str) -> bytes:
        try:
            return (self._folder / key).read_bytes()
        except OSError as error:
            raise translate(error, self.uri(key)) from error

    def get_tail(self, key: str, size: int) -> bytes:
        try:
            with (self._folder / key).open("rb") as file:
                file.seek(-min(size, os.fstat(file.fileno()).st_size), os.SEEK_END)
                return file.read()
        except OSError as error:
            raise translate(error, self.uri(key)) from error

    def get_file(self, key: str, path: Path) -> str:
        try:
            with (self._folder / key).open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                return _version(os.fstat(source.fileno()))
        except OSError as error:
            raise translate(error, self.uri(key)) from error

    def look_up(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        return [self._look_up(key) for key in keys]

    def _look_up(self, key: str) -> ObjectInfo | None:
        try:
            stat = (self._folder / key).stat()
        except OSError as error:
            return judge_look_up(translate(error, self.uri(key)), key)
        return ObjectInfo(key, stat.st_size, _version(stat))

    def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        if not keys:
            return []
        start, waits = time.perf_counter(), _waits()
        first = [self._fetch(key, max_bytes) for key in keys[:_READ_THREADS]]
        rest = keys[len(first) :]
        # Slow, and because it waited: a busy machine takes the core away, and more threads would only cost more.
        if time.perf_counter() - start < _SLOW_READ_S * len(first) or _waits() - waits < len(first) / 2:
            return first + [self._fetch(key, max_bytes) for key in rest]
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            return first + list(pool.map(lambda key: self._fetch(key, max_bytes), rest))

    def _fetch(self, key: str, max_bytes: int) -> Fetched | RejectError:
        try:
            with (self._folder / key).open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_size > max_bytes:
                    return rejection("TooManyBytes", self.uri(key))
                return Fetched(file.read(), _version(stat))
        except (FileNotFoundError, NotADirectoryError):
            if not self._folder.is_dir():
                return RejectError("read", "Unavailable", f"the folder {self._folder} is gone")
            return rejection("NotFound", self.uri(key))
        except IsADirectoryError:
            return rejection("Forbidden", self.uri(key))
        except OSError as error:
            return judge_fetch(translate(error, self.uri(key)), self.uri(key))

    def put(self, key: str, data: bytes) -> None:
        self._write(key, data, replace=True)

    def put_file(self, key: str, path: Path, *, replace: bool = True) -> bool:
        try:
            return self._write(key, path, replace=replace)
        except UnsupportedError:
            return not (self._folder / key).exists() and self._write(key, path, replace=True)

    def replace_file(self, key: str, path: Path, version: str) -> bool:
        def changed() -> bool:
            found = self._look_up(key)
            return found is None or found.version != version

        return not changed() and self._write(key, path, replace=True, unless=changed)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._write(key, data, replace=False)

    def _write(
        self, key: str, content: bytes | Path, *, replace: bool, unless: Callable[[], bool] = lambda: False
    ) -> bool:
        try:
            return atomic.write(self._folder / key, content, replace=replace, unless=unless)
        except OSError as error:
            raise translate(error, self.uri(key)) from error

    def delete(self, keys: Sequence[str]) -> None:
        folders = set()
        for key in keys:
            path = self._folder / key
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise translate(error, self.uri(key)) from error
            folders.add(path.parent)
        for folder in folders - {self._folder}:
            try:
                folder.rmdir()
            except OSError as error:
                # A folder that still holds something stays; one that is gone already is fine.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise translate(error, str(folder)) from error

    def sweep(self, prefix: str) -> int:
        """Nobody but the job that holds the lease may call this: a writer that lives loses its file."""
        partial = [
            entry.path[len(self.root) :] for entry in walk(str(self._folder), prefix) if entry.name.startswith(PARTIAL)
        ]
        self.delete(partial)
        return len(partial)

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


def _waits() -> int:
    """How often this thread gave up its core of its own accord, such as to wait for a disk."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}"
