"""The endpoint as people build it today: FastAPI, Pillow and timm's transform, a batched forward; with Ray and without.

No limits, keys, deadlines, errors of single images or figures: just what the usual examples have. The model is the
slice of ``pipeline.bench.stubs``, in timm's terms.
"""

# No postponed annotations: Serve pickles these apps, and FastAPI would not find the name Request again.
import io
from typing import TYPE_CHECKING, Any

import torch
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image

from pipeline.bench.peers import timm_transform
from pipeline.bench.stubs import SLICE

if TYPE_CHECKING:
    from ray.serve import Application


ROOM = 100
"""Requests that a replica has in hand at most, where it is not Ray's default."""


class SliceModel(torch.nn.Module):
    """Stands for the model: the red channel of the first row."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) float32 → (n, 384) float32."""
        return pixels[:, 0, 0, :SLICE]


def plain_app() -> FastAPI:
    """FastAPI alone, for uvicorn: an image a request, on its thread pool."""
    app, transform, model = FastAPI(), timm_transform(), SliceModel().eval()

    def embed(data: bytes) -> list[float]:
        with torch.inference_mode():
            vector: list[float] = model(transform(Image.open(io.BytesIO(data)).convert("RGB")).unsqueeze(0))[0].tolist()
        return vector

    @app.post("/")
    async def answer(request: Request) -> dict[str, list[float]]:
        return {"embedding": await run_in_threadpool(embed, await request.body())}

    return app


def usual_application(**options: Any) -> "Application":
    """Ray Serve as its examples of image models show it, with Ray's defaults but for ``options`` of the deployment."""
    from ray import serve as ray_serve

    app = FastAPI()

    @ray_serve.deployment
    @ray_serve.ingress(app)
    class Usual:
        def __init__(self) -> None:
            self.transform = timm_transform()
            self.model = SliceModel().eval()

        @ray_serve.batch  # type: ignore[untyped-decorator]
        async def forward(self, images: list[torch.Tensor]) -> list[list[float]]:
            with torch.inference_mode():
                vectors: list[list[float]] = self.model(torch.stack(images)).tolist()
            return vectors

        @app.post("/")
        async def answer(self, request: Request) -> dict[str, list[float]]:
            image = Image.open(io.BytesIO(await request.body())).convert("RGB")
            return {"embedding": await self.forward(self.transform(image))}

    bound: Application = Usual.options(**options).bind()  # type: ignore[attr-defined]
    return bound


def roomy_application() -> "Application":
    """The usual one, but all clients are let in at once.

    By default a replica has five requests in hand, and the router looks for room with pauses of up to half a second.
    """
    return usual_application(max_ongoing_requests=ROOM)


def empty_application() -> "Application":
    """Ray Serve around nothing, all clients let in: the body is read, and the answer is always the same."""
    from ray import serve as ray_serve

    app = FastAPI()
    vector: list[float] = torch.rand(SLICE, generator=torch.Generator().manual_seed(0)).tolist()

    @ray_serve.deployment
    @ray_serve.ingress(app)
    class Empty:
        @app.post("/")
        async def answer(self, request: Request) -> dict[str, Any]:
            await request.body()
            return {"embedding": vector}

    bound: Application = Empty.options(max_ongoing_requests=ROOM).bind()  # type: ignore[attr-defined]
    return bound
