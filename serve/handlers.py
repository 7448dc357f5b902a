"""What a request for features goes through: a place, its body in time, the engine, and the form of its answer."""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Response
from pydantic import ValidationError
from pydantic_core import to_json

from serve import schemas
from serve.answers import ARROW, JSON, NPY, Answer
from serve.bodies import Image, check_count, decode_inputs, read_body, read_images
from serve.errors import ApiError, timeout_error
from serve.outputs import columns_of, parse_outputs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastapi import Request

    from serve.engine import Engine
    from serve.metrics import Metrics

FINGERPRINT = "X-Raysight-Fingerprint"


@dataclass
class Ticket:
    """A request that was let in: until when it must be answered, and the images it holds a place for."""

    deadline: float
    images: int = 1


class Handlers:
    """Of one engine, for everybody whom the doors let in."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def ticket(self) -> AsyncIterator[Ticket]:
        """A place in the queue, from before the body is read until the answer is out. Raises ApiError 503 or 429."""
        admission = self._engine.admission
        admission.enter()
        ticket = Ticket(asyncio.get_running_loop().time() + self._engine.config.request_timeout_s)
        try:
            yield ticket
        finally:
            admission.leave(ticket.images)

    async def embeddings(self, request: Request, ticket: Ticket) -> Response:
        """OpenAI's request."""
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

    async def features(self, request: Request, ticket: Ticket, outputs: str, kind: str = JSON) -> Response:
        """Images as a body or a form; ``outputs`` as the client wrote them, in an answer of type ``kind``."""
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
            # A tenth of json.dumps' time, which is half a millisecond for a vector; every number reads the same.
            return Response(to_json(make()), media_type=JSON, headers={FINGERPRINT: answer.fingerprint})

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

    def model(self, name: str | None = None) -> schemas.Model:
        """What is served. Raises ApiError 404 for any name but its own."""
        if name is not None:
            self._check_model(name)
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

    def _check_model(self, name: str) -> None:
        if name != self._engine.model:
            raise ApiError(404, "model_not_found", f"the model that is served is {self._engine.model}", "model")


def parse_request(body: bytes) -> schemas.EmbeddingRequest:
    """The JSON of /v1/embeddings. Raises ApiError 400, which names the field."""
    try:
        return schemas.EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        what = f"{param}: {first['msg']}" if param else "the body is not a JSON object"
        raise ApiError(400, "invalid_request", what, param) from None
