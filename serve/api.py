"""The endpoint as a FastAPI app around an engine. Knows nothing of ray."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline import __version__
from serve import schemas
from serve.doors import doors
from serve.errors import ApiError
from serve.handlers import FINGERPRINT
from serve.metrics import Metrics
from serve.outputs import columns_of
from serve.page import routes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pipeline.metrics import Recorder
    from serve.auth import KeyRing
    from serve.engine import Engine

_log = logging.getLogger("raysight.serve")

_CLIENT_GONE = 499
"""nginx's name, in the figures, for a request whose client went away before its answer: no fault of this server's."""


def create_app(engine: Engine, keys: KeyRing | None, recorders: Sequence[Recorder] = ()) -> FastAPI:
    """The app: the doors behind the key, and in the open the probes, the OpenAPI document and the page.

    Args:
        engine: started and stopped with the app.
        keys: None answers requests to localhost alone, and asks for no key.
        recorders: where its figures go besides ``/metrics``.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.stop()

    metrics = Metrics(engine, recorders)
    app = FastAPI(
        title="raysight",
        version=__version__,
        description="Features of images.",
        lifespan=lifespan,
        docs_url=None,  # those of FastAPI have their viewers from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(doors(engine, keys, metrics))

    @app.get("/healthz")
    async def healthz() -> schemas.Status:
        """The process answers."""
        return schemas.Status(status="ok")

    @app.get("/readyz", responses={503: {"model": schemas.Status}})
    async def readyz(response: Response) -> schemas.Status:
        """New requests are welcome; 503 while the server drains."""
        if engine.admission.draining:
            response.status_code = 503
            return schemas.Status(status="draining")
        return schemas.Status(status="ready")

    app.routes.extend(routes())
    app.add_middleware(_Envelope, metrics=metrics, digest=engine.fingerprint(columns_of(engine.outputs)).digest)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(RequestValidationError, _refuse_parameters)
    app.add_exception_handler(ClientDisconnect, _refuse_nobody)
    return app


class _Envelope:
    """What every answer has: the fingerprint, a place in the figures, no guessing of its type; and to HEAD, no body.

    Accidents are answered here, since Starlette's own place for them is outside of this.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, digest: str) -> None:
        self._app = app
        self._metrics = metrics
        self._digest = digest.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status, begun = _CLIENT_GONE, False
        name = FINGERPRINT.lower().encode()
        head = scope["method"] == "HEAD"
        if head:
            scope = {**scope, "method": "GET"}

        async def send_on(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                headers = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
                if all(key.lower() != name for key, _ in headers):
                    headers.append((name, self._digest))
                message = {**message, "headers": headers}
            elif head:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            _log.error("a request failed", exc_info=error)
            if begun:
                raise
            await _accident()(scope, receive, send_on)
        finally:
            # Only routes that exist: a label for each path that somebody tries would grow without bound.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe(route, status, time.perf_counter() - start)


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, headers=dict(error.headers))


async def _refuse_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    refusal = ApiError(error.status_code, code, f"{error.detail}; /docs names what there is")
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    return JSONResponse(refusal.body(), error.status_code, headers=headers)


async def _refuse_parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    param = str(first["loc"][-1])
    return JSONResponse(ApiError(400, "invalid_request", f"{param}: {first['msg']}", param).body(), 400)


async def _refuse_nobody(_: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


def _accident() -> Response:
    refusal = ApiError(500, "internal_error", "something went wrong on the server; its log says what")
    return JSONResponse(refusal.body(), refusal.status)
