"""The doors that need a key, as the OpenAPI document has them: embeddings, features, classes, model, figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response, Security
from fastapi.security import HTTPBearer

from serve import schemas
from serve.answers import ARROW, NPY, pick_type
from serve.auth import KeyRing, check_host
from serve.handlers import Handlers, Ticket

if TYPE_CHECKING:
    from serve.engine import Engine
    from serve.metrics import Metrics

_Answers = dict[int | str, dict[str, Any]]

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_IMAGES = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": _BINARY["schema"]}},
                    "required": ["file"],
                }
            },
        },
    }
}
_REFUSALS: _Answers = {
    status: {"model": schemas.ErrorAnswer, "description": text}
    for status, text in (
        (400, "Malformed, too many images, or something that this model has not"),
        (401, "No API key, or an unknown one"),
        (403, "Without API keys: the request's Host is another machine"),
        (413, "The body is too large"),
        (422, "The request's only image cannot be used"),
        (429, "Too many images are waited for; see Retry-After"),
        (503, "Shutting down, or too many pixels in flight; see Retry-After"),
        (504, "Not answered in time"),
    )
}
_CLOSED: _Answers = {status: _REFUSALS[status] for status in (401, 403)}
_OTHER_MODEL: _Answers = {
    404: {"model": schemas.ErrorAnswer, "description": "Another model than the one that is served"}
}


def doors(engine: Engine, keys: KeyRing | None, figures: Metrics) -> APIRouter:
    """The routes, each behind the key.

    Args:
        engine: which answers.
        keys: None lets everybody in who comes from this machine.
        figures: of this replica.
    """

    async def authorize(request: Request) -> None:
        if keys is None:
            check_host(request.headers.get("host"))
        else:
            keys.check(request.headers.get("authorization"))

    handlers = Handlers(engine, figures)
    bearer = Security(HTTPBearer(auto_error=False, description="an API key"))
    router = APIRouter(dependencies=[bearer, Depends(authorize)])
    ticket = Depends(handlers.ticket)

    @router.post(
        "/v1/embeddings",
        response_model=None,
        responses={200: {"model": schemas.EmbeddingAnswer}, **_OTHER_MODEL, **_REFUSALS},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schemas.EmbeddingRequest.model_json_schema()}},
            }
        },
    )
    async def embeddings(request: Request, ticket: Ticket = ticket) -> Response:
        """Vectors in OpenAI's shape."""
        return await handlers.embeddings(request, ticket)

    @router.post(
        "/v1/features",
        response_model=None,
        responses={
            200: {"model": schemas.FeaturesAnswer, "content": {NPY: _BINARY, ARROW: _BINARY}},
            406: {"model": schemas.ErrorAnswer},
            415: {"model": schemas.ErrorAnswer},
            **_REFUSALS,
        },
        openapi_extra=_IMAGES,
    )
    async def features(
        request: Request,
        outputs: Annotated[str, Query(description="embedding, patches, classes; with commas")] = "embedding",
        ticket: Ticket = ticket,
    ) -> Response:
        """Outputs of one image or several, as JSON, NumPy or Arrow."""
        return await handlers.features(request, ticket, outputs, pick_type(request.headers.get("accept")))

    @router.post(
        "/v1/classify",
        response_model=None,
        responses={200: {"model": schemas.FeaturesAnswer}, 415: {"model": schemas.ErrorAnswer}, **_REFUSALS},
        openapi_extra=_IMAGES,
    )
    async def classify(request: Request, ticket: Ticket = ticket) -> Response:
        """The likeliest classes of one image or several."""
        return await handlers.features(request, ticket, "classes")

    @router.get("/v1/models", responses={**_CLOSED})
    async def models() -> schemas.ModelsAnswer:
        """What is served, with its fingerprint."""
        return schemas.ModelsAnswer(data=[handlers.model()])

    @router.get("/v1/models/{model:path}", responses={**_CLOSED, **_OTHER_MODEL})
    async def model(model: str) -> schemas.Model:
        """The model by its name."""
        return handlers.model(model)

    @router.get("/metrics", response_class=Response, responses={**_CLOSED})
    async def metrics() -> Response:
        """Figures of the replica that answers, in Prometheus' text format."""
        return Response(figures.render(), media_type="text/plain; version=0.0.4")

    return router
