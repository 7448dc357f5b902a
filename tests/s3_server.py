"""A real S3 server on loopback: moto's server in a process of its own, behind a layer that injects faults on demand.

Tests take the fixtures ``s3`` (the server) and ``bucket`` (an empty bucket of it; the environment of the test points
there). Ray workers reach it through :meth:`S3Server.environment`. A helper of another kind can start its own
:class:`S3Server`, for example one that it kills.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

import boto3
import pytest
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mypy_boto3_s3 import S3Client

_START_S = 60.0

_STATUS = {
    "AccessDenied": "403 Forbidden",
    "AuthenticationFailed": "403 Forbidden",
    "AuthenticationRequired": "401 Unauthorized",
    "ExpiredToken": "400 Bad Request",
    "InvalidAccessKeyId": "403 Forbidden",
    "NoAuthenticationInformation": "401 Unauthorized",
    "NoSuchBucket": "404 Not Found",
    "PublicAccessNotPermitted": "409 Conflict",
}


@dataclass(frozen=True, slots=True)
class Faults:
    """What the server does wrong. Keys are whole ones, without the bucket.

    Attributes:
        forbidden: keys whose bytes may not be read (403).
        gone: keys that are listed, but not there (404).
        slow_down: key → how many of the next GETs are answered 503 SlowDown.
        no_conditional_puts: PUTs with a condition are answered 501, as some stores do.
        no_signatures: signed requests are answered 403, so that only anonymous ones get through.
        cut_off: key → how many of the next GETs break off in the middle of the body.
        failing: every request is answered 500.
        refusing: every request is answered with this error code, and the status that its cloud gives it.
        delay_s: seconds before every answer.
        fail_puts_after: only so many PUTs and deletions go through, the others are answered 500; None is all.
    """

    forbidden: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    slow_down: Mapping[str, int] = field(default_factory=dict)
    no_conditional_puts: bool = False
    no_signatures: bool = False
    cut_off: Mapping[str, int] = field(default_factory=dict)
    failing: bool = False
    refusing: str | None = None
    delay_s: float = 0.0
    fail_puts_after: int | None = None


class S3Server:
    """The server's process, as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        assert port, "the S3 server did not start"
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends the server at once: connections are refused from now on, and what it held is lost."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server, and nothing else of the user's."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "raysight",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> S3Client:
        """A plain boto3 client, to set the scene and to look at it."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
            config=Config(max_pool_connections=8, retries={"total_max_attempts": 1}),
        )

    def set_faults(self, **faults: Any) -> None:
        """From now on these faults (the fields of :class:`Faults`), and no others; starts new :meth:`requests`."""
        self._control("PUT", asdict(Faults(**faults)))

    def requests(self) -> dict[str, int]:
        """Requests since :meth:`set_faults` by "METHOD bucket/key"; their ``connections``; the most ``at_once``."""
        counts: dict[str, int] = self._control("GET", None)
        return counts

    def _control(self, method: str, values: object) -> Any:
        data = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(f"{self.url}/_faults", data, method=method)
        with urllib.request.urlopen(request, timeout=_START_S) as answer:
            return json.load(answer)


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket of a running server."""

    name: str
    server: S3Server
    client: S3Client

    @property
    def url(self) -> str:
        """``s3://bucket``, to which a prefix can be added."""
        return f"s3://{self.name}"

    def fill(self, objects: Mapping[str, bytes]) -> None:
        """Puts objects, several at once."""
        with ThreadPoolExecutor(4) as pool:
            list(
                pool.map(
                    lambda item: self.client.put_object(Bucket=self.name, Key=item[0], Body=item[1]), objects.items()
                )
            )

    def keys(self, prefix: str = "") -> list[str]:
        """All keys, as boto3 lists them."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        """The bytes of an object."""
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A running S3 server without faults."""
    with S3Server() as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, to which the environment of this process points; faults end with the test."""
    use_environment(s3, monkeypatch)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client = s3.client()
    client.create_bucket(Bucket=name)
    yield Bucket(name, s3, client)
    s3.set_faults()
    client.close()


def use_environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points this process at a server."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


class FaultLayer:
    """WSGI middleware before moto: answers wrongly where :class:`Faults` says so, and counts requests."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._reset({})

    def _reset(self, values: dict[str, Any]) -> None:
        self._faults = Faults(**values)
        self._slow_down = dict(self._faults.slow_down)
        self._cut_off = dict(self._faults.cut_off)
        self._counts: Counter[str] = Counter()
        self._puts = 0
        self._connections: set[str] = set()
        self._now = self._at_once = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path, _, query = environ["RAW_URI"].partition("?")
        if path == "/_faults":
            return self._control(environ, start_response)
        bucket, _, key = unquote(path).removeprefix("/").partition("/")
        with self._lock:
            self._counts[f"{environ['REQUEST_METHOD']} {bucket}/{key}"] += 1
            self._connections.add(f"{environ['REMOTE_ADDR']}:{environ['REMOTE_PORT']}")
            fault = self._judge(environ, key, query)
            cut_off = environ["REQUEST_METHOD"] == "GET" and self._cut_off.get(key, 0) > 0
            if cut_off:
                self._cut_off[key] -= 1
            self._now += 1
            self._at_once = max(self._at_once, self._now)
        time.sleep(self._faults.delay_s)
        with self._lock:
            self._now -= 1
        if fault is None:
            answer = self._app(environ, start_response)
            return _half(answer, environ["werkzeug.socket"]) if cut_off else answer
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))  # else the connection is out of step
        status, code = fault
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>a fault of the test</Message></Error>"
        return _answer(start_response, status, "application/xml", body)

    def _judge(self, environ: dict[str, Any], key: str, query: str) -> tuple[str, str] | None:
        faults, method = self._faults, environ["REQUEST_METHOD"]
        if faults.failing:
            return "500 Internal Server Error", "InternalError"
        if faults.refusing:
            return _STATUS[faults.refusing], faults.refusing
        if faults.no_signatures and "HTTP_AUTHORIZATION" in environ:
            return "403 Forbidden", "AccessDenied"
        conditional = "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ
        if method == "PUT" and faults.no_conditional_puts and conditional:
            return "501 Not Implemented", "NotImplemented"
        if method in ("PUT", "DELETE") or (method == "POST" and "delete" in query):
            self._puts += 1
            if faults.fail_puts_after is not None and self._puts > faults.fail_puts_after:
                return "500 Internal Server Error", "InternalError"
        if method != "GET" or not key:
            return None
        if key in faults.forbidden:
            return "403 Forbidden", "AccessDenied"
        if key in faults.gone:
            return "404 Not Found", "NoSuchKey"
        if self._slow_down.get(key, 0) > 0:
            self._slow_down[key] -= 1
            return "503 Slow Down", "SlowDown"
        return None

    def _control(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        with self._lock:
            if environ["REQUEST_METHOD"] == "PUT":
                self._reset(json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))))
            body = json.dumps({**self._counts, "connections": len(self._connections), "at_once": self._at_once})
        return _answer(start_response, "200 OK", "application/json", body)


def _half(answer: Any, connection: socket.socket) -> Iterator[bytes]:
    """Half of a body; then the connection breaks."""
    body = b"".join(answer)
    yield body[: len(body) // 2]
    connection.shutdown(socket.SHUT_RDWR)


def _answer(start_response: Callable[..., Any], status: str, content_type: str, body: str) -> list[bytes]:
    data = body.encode()
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(data)))])
    return [data]


def serve() -> None:
    """The process: prints its port once it listens, and ends with the process that started it."""
    import logging
    import os

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()

    class Handler(MotoRequestHandler):
        """Keeps connections open after a GET, as every store does; werkzeug's own way closes each one."""

        disable_nagle_algorithm = True  # else each GET waits 40 ms: its head is sent, and acknowledged, before its body

        def run_wsgi(self) -> None:
            if self.command != "GET":
                super().run_wsgi()
                return
            head: list[Any] = []
            body = self.server.app(self.make_environ(), lambda *values: head.extend(values))
            parts = iter([b"".join(body)] if isinstance(body, list) else body)
            first = next(parts, b"")
            status, headers = head[:2]
            self.send_response(int(status.split()[0]))
            for name, value in headers:
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name, _ in headers):
                self.send_header("Connection", "close")
            self.end_headers()
            for part in chain([first], parts):
                self.wfile.write(part)
            self.wfile.flush()

    app = FaultLayer(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
