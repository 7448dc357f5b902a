"""Web servers as a store: objects by their URLs, read only.

obstore's HTTP store takes paths, not URLs: it has no place for a query, writes ``%2F`` anew, and refuses answers
without a length. A table of URLs has all of these, so urllib3 asks for each URL as it stands.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NoReturn

import urllib3
from urllib3.exceptions import HTTPError

from pipeline import __version__
from pipeline.errors import ForbiddenError, NotFoundError, RejectError, StorageError, UnavailableError, UsageError
from pipeline.judgement import judge_fetch, rejection
from pipeline.store import Fetched, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.config import StorageConfig

_PASSING = (408, 429, 500, 502, 503, 504)  # HTTP statuses that another try may change
_GONE = (404, 410)
_FORBIDDEN = (401, 402, 403, 407, 451)
_BACKOFF_MAX_S = 8.0
_BLOCK = 1 << 20


class WebStore:
    """Objects of ``http://`` and ``https://`` URLs, which are their keys. Several threads may use it at once."""

    def __init__(self, config: StorageConfig) -> None:
        self._in_flight = config.max_in_flight
        self._pool = urllib3.PoolManager(
            num_pools=config.max_in_flight,
            maxsize=config.max_in_flight,
            headers={"User-Agent": f"raysight/{__version__}", "Accept-Encoding": "identity"},
            timeout=urllib3.Timeout(connect=config.connect_timeout_s, read=config.timeout_s),
            retries=urllib3.Retry(
                total=config.max_retries,
                status_forcelist=_PASSING,
                allowed_methods=None,
                backoff_factor=0.1,
                backoff_max=_BACKOFF_MAX_S,
                backoff_jitter=0.1,
                raise_on_status=False,
            ),
        )

    @property
    def root(self) -> str:
        return "http://"

    def check(self, *, missing_ok: bool = False) -> None:
        """The web as a whole is never down, and one server of many is no reason to end a job."""
        del missing_ok

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Raises UsageError."""
        raise UsageError(f"{prefix or self.root}: a web server cannot be listed; give a table of URLs")

    def get_file(self, key: str, path: Path) -> str:
        try:
            answer = self._ask("GET", key)
            try:
                size = 0
                with path.open("wb") as file:
                    for part in answer.stream(_BLOCK):
                        size += file.write(part)
                return _version(answer, size)
            finally:
                answer.close()
        except HTTPError as error:
            raise UnavailableError(f"{key}: {error}") from error

    def look_up(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        """One HEAD each, or a GET of one byte where a server refuses HEAD. Nothing is seen on a server that is down."""
        with ThreadPoolExecutor(self._in_flight) as pool:
            return list(pool.map(self._look_up, keys))

    def _look_up(self, key: str) -> ObjectInfo | None:
        try:
            try:
                answer = self._ask("HEAD", key)
            except NotFoundError:
                return None
            except StorageError:
                # Some refuse HEAD; a URL signed for GET is good for nothing else.
                answer = self._ask("GET", key, {"Range": "bytes=0-0"})
            try:
                size = _size(answer)
                if size is None:
                    answer.close()
                    answer = self._ask("GET", key)
                    size = sum(len(part) for part in answer.stream(_BLOCK))
                return ObjectInfo(key, size, _version(answer, size))
            finally:
                answer.close()
        except (HTTPError, StorageError):
            return ObjectInfo.unseen(key)  # the read judges it, with the error

    def fetch_many(self, keys: Sequence[str], max_bytes: int) -> list[Fetched | RejectError]:
        if not keys:
            return []
        with ThreadPoolExecutor(min(len(keys), self._in_flight)) as pool:
            return list(pool.map(lambda key: self._fetch(key, max_bytes), keys))

    def _fetch(self, key: str, max_bytes: int) -> Fetched | RejectError:
        try:
            answer = self._ask("GET", key)
            try:
                data = bytearray()
                for part in answer.stream(_BLOCK):
                    data += part
                    if len(data) > max_bytes:
                        return rejection("TooManyBytes", key)
                return Fetched(bytes(data), _version(answer, len(data)))
            finally:
                answer.close() if answer.length_remaining else answer.release_conn()
        except StorageError as failure:
            return judge_fetch(failure, key)
        except HTTPError as error:
            return RejectError("read", "Unavailable", f"{key}: {error}")

    def _ask(self, method: str, url: str, headers: dict[str, str] | None = None) -> urllib3.BaseHTTPResponse:
        """The answer, its body not read yet. Raises HTTPError where there is none, StorageError where it is no 2xx."""
        merged = {**self._pool.headers, **(headers or {})}
        answer = self._pool.request(method, url, headers=merged, preload_content=False)
        if answer.status not in (200, 206):
            answer.close()
            _raise(answer.status, url)
        return answer

    def uri(self, key: str) -> str:
        return key

    def key(self, uri: str) -> str:
        return uri


def _raise(status: int, url: str) -> NoReturn:
    if status in _GONE:
        raise NotFoundError(f"{url}: not found (HTTP {status})")
    if status in _FORBIDDEN:
        raise ForbiddenError(f"{url}: not allowed (HTTP {status})")
    raise UnavailableError(f"{url}: HTTP {status}")


def _size(answer: urllib3.BaseHTTPResponse) -> int | None:
    """Bytes of the whole object."""
    if answer.status == 206:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _version(answer: urllib3.BaseHTTPResponse, size: int) -> str:
    """The ETag, else when it was modified last, else no more than its size."""
    headers = answer.headers
    return headers.get("ETag", "").removeprefix("W/").strip('"') or headers.get("Last-Modified") or f"{size:x}"
