"""A folder over HTTP as S3 answers, from memory: a source that costs next to nothing of what is measured.

It knows GET and HEAD of an object, and ListObjectsV2 in one page. A process of its own, started by :func:`serving`.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BUCKET = "bench"

_DATE = b"Wed, 25 Nov 2026 00:00:00 GMT"
_STATUS = {200: b"200 OK", 206: b"206 Partial Content", 404: b"404 Not Found"}


class _Answers(asyncio.Protocol):
    """One connection. A request without a body is all that is expected, and answers are made beforehand."""

    def __init__(self, objects: Mapping[str, tuple[bytes, bytes]], listing: bytes) -> None:
        self._objects = objects
        self._listing = listing
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) >= 0:
            method, target, _ = self._pending[:end].split(b" ", 2)
            self._pending = self._pending[end + 4 :]
            self._answer(method, urlsplit(target.decode()))

    def _answer(self, method: bytes, target: object) -> None:
        path, query = unquote(target.path), target.query  # type: ignore[attr-defined]
        write = self._transport.write  # type: ignore[attr-defined]
        if "list-type" in query:
            write(_head(200, len(self._listing), b"") + self._listing)
        elif (item := self._objects.get(path)) is None:
            write(_head(404, 0, b""))
        else:
            head, body = item
            write(head if method == b"HEAD" else head + body)


def _head(status: int, length: int, etag: bytes) -> bytes:
    tag = b'ETag: "' + etag + b'"\r\n' if etag else b""
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\nLast-Modified: %b\r\n%b\r\n" % (_STATUS[status], length, _DATE, tag)


def _load(folder: Path) -> tuple[dict[str, tuple[bytes, bytes]], bytes]:
    """Path → (head, body), and the listing. Equal bodies are kept once."""
    bodies: dict[bytes, tuple[bytes, bytes]] = {}
    objects, entries = {}, []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        tag = hashlib.md5(data, usedforsecurity=False).hexdigest().encode()
        head, body = bodies.setdefault(tag, (_head(200, len(data), tag), data))
        objects[f"/{BUCKET}/{path.name}"] = (head, body)
        entries.append(
            f"<Contents><Key>{path.name}</Key><LastModified>2026-11-25T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{tag.decode()}&quot;</ETag><Size>{len(data)}</Size></Contents>"
        )
    listing = (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><KeyCount>{len(entries)}</KeyCount><IsTruncated>false</IsTruncated>"
        f"{''.join(entries)}</ListBucketResult>"
    )
    return objects, listing.encode()


async def _serve(folder: Path) -> None:
    objects, listing = _load(folder)
    server = await asyncio.get_running_loop().create_server(lambda: _Answers(objects, listing), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The server's process, and the environment in which ``s3://bench/`` is its folder."""
    command = [sys.executable, "-m", "pipeline.bench.object_server", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        try:
            yield (
                process,
                {
                    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                    "AWS_ACCESS_KEY_ID": "bench",
                    "AWS_SECRET_ACCESS_KEY": "bench",
                    "AWS_REGION": "us-east-1",
                    "AWS_DEFAULT_REGION": "us-east-1",
                },
            )
        finally:
            process.stdin.close()


if __name__ == "__main__":
    try:
        import uvloop  # comes with ray[serve]; twice as fast as the loop of the standard library
    except ImportError:
        asyncio.run(_serve(Path(sys.argv[1])))
    else:
        uvloop.run(_serve(Path(sys.argv[1])))
