"""The bound on bodies that Serve's proxies are given: what stands behind it never sees more."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pipeline.sections import ServeConfig
from serve.ingress import ENVIRONMENT, BodyLimit, environment, middlewares

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

LIMIT = 1000


class Replica:
    """Reads the body to its end and answers 200, or 400 when the client went away; notes what it saw."""

    def __init__(self, *, answer_first: bool = False) -> None:
        self.answer_first = answer_first
        self.bytes = 0
        self.last = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.answer_first:
            await self.answer(send, 401)
        more = True
        while more:
            message = await receive()
            self.last = message["type"]
            self.bytes += len(message.get("body", b""))
            more = self.last == "http.request" and message.get("more_body", False)
        if not self.answer_first:
            await self.answer(send, 200 if self.last == "http.request" else 400)

    async def answer(self, send: Send, status: int) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"of the replica"})


def post(replica: Replica, content: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(BodyLimit(replica, LIMIT))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/features", content=content)

    return asyncio.run(ask())


async def pieces(count: int, size: int = 100) -> AsyncIterator[bytes]:
    """A body without a declared length."""
    for _ in range(count):
        yield bytes(size)


@pytest.mark.parametrize("content", [b"", bytes(LIMIT)])
def test_a_body_within_the_bound_goes_through(content: bytes) -> None:
    replica = Replica()
    answer = post(replica, content)
    assert (answer.status_code, answer.text, replica.bytes) == (200, "of the replica", len(content))


def test_so_does_one_without_a_declared_length() -> None:
    replica = Replica()
    assert post(replica, pieces(10)).status_code == 200
    assert replica.bytes == LIMIT


def test_a_declared_length_over_the_bound_is_a_413_before_anything_is_read() -> None:
    replica = Replica()
    answer = post(replica, bytes(LIMIT + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["limit"] == {"name": "max_body_bytes", "value": LIMIT}
    assert answer.headers["connection"] == "close"
    assert replica.last == ""


def test_a_body_that_goes_on_beyond_the_bound_is_a_413_and_ends_for_what_stands_behind() -> None:
    replica = Replica()
    answer = post(replica, pieces(1_000_000))
    assert answer.status_code == 413
    assert answer.json()["error"]["limit"] == {"name": "max_body_bytes", "value": LIMIT}
    assert (replica.bytes, replica.last) == (LIMIT, "http.disconnect")


def test_an_answer_that_has_begun_stays_as_it_is() -> None:
    answer = post(Replica(answer_first=True), pieces(1_000_000))
    assert (answer.status_code, answer.text) == (401, "of the replica")


def test_rays_proxies_find_it_by_what_the_command_starts_ray_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(ServeConfig(max_body_bytes=12_345)).items():
        monkeypatch.setenv(name, value)
    (middleware,) = middlewares()
    assert (middleware.cls, middleware.kwargs) == (BodyLimit, {"max_bytes": 12_345})
    module, _, name = ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert getattr(sys.modules[module], name) is middlewares


def test_a_proxy_needs_neither_torch_nor_the_model_for_it() -> None:
    code = "import sys, serve.ingress; print({'torch', 'timm', 'ray'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
