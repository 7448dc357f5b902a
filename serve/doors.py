"""The doors that need a key: embeddings, features, classes, the model and the figures."""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import ValidationError

from serve import schemas
from serve.answers import ARROW, NPY, Answer, pick_type
from serve.auth import KeyRing, check_host
from serve.bodies import Image, check_count, decode_inputs, read_body, read_images
from serve.engine import Engine, timeout_error
from serve.errors import ApiError
from serve.outputs import columns_of, parse_outputs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from serve.metrics import Metrics

FINGERPRINT = "X-Raysight-Fingerprint"

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
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorAnswer, "description": text}
    for status, text in (
        (400, "Malformed, too many images, or something that this model has not"),
        (401, "No API key, or an unknown one"),
        (413, "The body is too large"),
        (422, "The request's only image cannot be used"),
        (429, "Too many images are waited for; see Retry-After"),
        (503, "Shutting down, or too many pixels in flight; see Retry-After"),
        (504, "Not answered in time"),
    )
}


@dataclass
class Ticket:
    """A request that was let in: until when it must be answered, and the images it holds a place for."""

    deadline: float
    images: int = 1


class Doors:
    """The handlers, around one engine. ``keys`` None lets everybody in who comes from this machine."""

    def __init__(self, engine: Engine, keys: KeyRing | None, metrics: Metrics) -> None:
        self._engine = engine
        self._keys = keys
        self._metrics = metrics

    def router(self) -> APIRouter:
        """The routes, each behind the key."""
        bearer = Security(HTTPBearer(auto_error=False, description="an API key"))
        router = APIRouter(dependencies=[bearer, Depends(self._authorize)])
        ticket = Depends(self._ticket)

        @router.post(
            "/v1/embeddings",
            response_model=None,
            responses={200: {"model": schemas.EmbeddingAnswer}, **_REFUSALS},
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": schemas.EmbeddingRequest.model_json_schema()}},
                }
            },
        )
        async def embeddings(request: Request, ticket: Ticket = ticket) -> Response:
            """Vectors in OpenAI's shape."""
            return await self._embeddings(request, ticket)

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
            return await self._features(request, ticket, outputs, pick_type(request.headers.get("accept")))

        @router.post(
            "/v1/classify",
            response_model=None,
            responses={200: {"model": schemas.FeaturesAnswer}, 415: {"model": schemas.ErrorAnswer}, **_REFUSALS},
            openapi_extra=_IMAGES,
        )
        async def classify(request: Request, ticket: Ticket = ticket) -> Response:
            """The likeliest classes of one image or several."""
            return await self._features(request, ticket, "classes", "application/json")

        @router.get("/v1/models", responses={401: _REFUSALS[401]})
        async def models() -> schemas.ModelsAnswer:
            """What is served, with its fingerprint."""
            return schemas.ModelsAnswer(data=[self._model()])

        @router.get("/v1/models/{model:path}", responses={401: _REFUSALS[401], 404: {"model": schemas.ErrorAnswer}})
        async def model(model: str) -> schemas.Model:
            """The model by its name."""
            self._check_model(model)
            return self._model()

        @router.get("/metrics", response_class=Response, responses={401: _REFUSALS[401]})
        async def metrics() -> Response:
            """Figures of the replica that answers, in Prometheus' text format."""
            return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")

        return router

    async def _authorize(self, request: Request) -> None:
        if self._keys is None:
            check_host(request.headers.get("host"))
        else:
            self._keys.check(request.headers.get("authorization"))

    async def _ticket(self) -> AsyncIterator[Ticket]:
        admission = self._engine.admission
        admission.enter()
        ticket = Ticket(asyncio.get_running_loop().time() + self._engine.config.request_timeout_s)
        try:
            yield ticket
        finally:
            admission.leave(ticket.images)

    async def _embeddings(self, request: Request, ticket: Ticket) -> Response:
        async with self._in_time(ticket):
            body = await read_body(request, self._engine.config)
            asked, images = await self._engine.run(functools.partial(self._parse, body))
        answer = await self._extract(images, ticket, ["embedding"])
        return await self._json(answer, functools.partial(answer.embeddings, asked.encoding_format))

    def _parse(self, body: bytes) -> tuple[schemas.EmbeddingRequest, list[Image]]:
        asked = parse_request(body)
        self._check_model(asked.model)
        width = self._engine.embedding_width
        if asked.dimensions not in (None, width):
            raise ApiError(400, "dimensions_not_supported", f"this model's vectors have {width} numbers", "dimensions")
        inputs = [asked.input] if isinstance(asked.input, str) else asked.input
        check_count(len(inputs), self._engine.config)
        return asked, decode_inputs(inputs)

    async def _features(self, request: Request, ticket: Ticket, outputs: str, kind: str) -> Response:
        names = parse_outputs(outputs, self._engine.outputs)
        async with self._in_time(ticket):
            images = await read_images(request, self._engine.config)
        answer = await self._extract(images, ticket, names)
        if kind == NPY:
            return await self._bytes(answer, answer.npy, NPY)
        if kind == ARROW:
            return await self._bytes(answer, answer.arrow, ARROW)
        return await self._json(answer, answer.features)

    async def _extract(self, images: list[Image], ticket: Ticket, outputs: list[str]) -> Answer:
        others = len(images) - 1
        self._engine.admission.more(others)
        ticket.images += others
        outcomes = await self._engine.extract([image.data for image in images], ticket.deadline)
        self._metrics.count(outcomes)
        answer = Answer(self._engine, images, outcomes, outputs)
        answer.check_single()
        return answer

    async def _json(self, answer: Answer, make: Callable[[], dict[str, Any]]) -> Response:
        def render() -> Response:
            return JSONResponse(make(), headers={FINGERPRINT: answer.fingerprint})

        response: Response = await self._engine.run(functools.partial(render))
        return response

    async def _bytes(self, answer: Answer, make: Callable[[], bytes], kind: str) -> Response:
        data = await self._engine.run(functools.partial(make))
        return Response(data, media_type=kind, headers={FINGERPRINT: answer.fingerprint})

    @asynccontextmanager
    async def _in_time(self, ticket: Ticket) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(ticket.deadline):
                yield
        except TimeoutError:
            raise timeout_error(self._engine.config.request_timeout_s) from None

    def _check_model(self, name: str) -> None:
        if name != self._engine.model:
            raise ApiError(404, "model_not_found", f"the model that is served is {self._engine.model}", "model")

    def _model(self) -> schemas.Model:
        engine = self._engine
        fingerprint = engine.fingerprint(columns_of(engine.outputs))
        return schemas.Model(
            id=engine.model,
            fingerprint={"digest": fingerprint.digest, **fingerprint.to_dict()},
            outputs=engine.outputs,
            image_size=list(engine.image_size),
            crop_pct=engine.extractor.preprocessor.config.crop_pct,
            crop_mode=engine.extractor.preprocessor.config.crop_mode,
            patch_grid=list(engine.patch_grid) if engine.patch_grid else None,
            has_classes="classes" in engine.outputs,
        )


def parse_request(body: bytes) -> schemas.EmbeddingRequest:
    """The JSON of /v1/embeddings. Raises ApiError 400, which names the field."""
    try:
        return schemas.EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        what = f"{param}: {first['msg']}" if param else "the body is not a JSON object"
        raise ApiError(400, "invalid_request", what, param) from None
