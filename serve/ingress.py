"""A bound on bodies in front of the replicas: Serve's proxies keep all that a client sends until a replica takes it.

Ray calls ``middlewares`` in every proxy that starts with ``ENVIRONMENT``; the replicas count for themselves as well.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from pipeline.settings import load_settings
from serve.errors import body_too_large

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pipeline.sections import ServeConfig

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.ingress:middlewares"}
"""What Ray is started with, on each node that has a proxy."""


def environment(config: ServeConfig) -> Mapping[str, str]:
    """ENVIRONMENT, and the bound, for a Ray of this endpoint alone."""
    return {**ENVIRONMENT, "RAYSIGHT_SERVE_MAX_BODY_BYTES": str(config.max_body_bytes)}


def middlewares() -> list[Middleware]:
    """For a proxy. The bound is that of its own surroundings: ``RAYSIGHT_CONFIG``, or a variable of its own."""
    return [Middleware(BodyLimit, max_bytes=load_settings(argparse.Namespace()).serve.max_body_bytes)]


class BodyLimit:
    """Answers 413 by the declared length, or as soon as more has arrived; what stands behind sees no more than that."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _declared(scope) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        size = 0
        begun = False

        async def receive_some() -> Message:
            nonlocal size
            message = await receive() if size <= self._max_bytes else {"type": "http.disconnect"}
            size += len(message.get("body", b""))
            return message if size <= self._max_bytes else {"type": "http.disconnect"}

        async def send_on(message: Message) -> None:
            nonlocal begun
            if begun or size <= self._max_bytes:
                begun = True
                await send(message)

        await self._app(scope, receive_some, send_on)
        if not begun and size > self._max_bytes:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = body_too_large(self._max_bytes)
        await JSONResponse(error.body(), error.status, headers=dict(error.headers))(scope, receive, send)


def _declared(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else 0
