"""A stand-in for the endpoint that the tests of the page can have before it is there: the API's shapes around a real
extractor, and the page as it is."""

from __future__ import annotations

import base64
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from pipeline.errors import RejectError
from serve.page import Page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.extractor import Extractor


def _error(status: int, message: str, code: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status)


def make_app(extractor: Extractor, outputs: list[str], key: str | None = None) -> FastAPI:
    app = FastAPI()
    config = extractor.preprocessor.config
    model = extractor._model

    def refused(request: Request) -> bool:
        return key is not None and request.headers.get("authorization") != f"Bearer {key}"

    @app.get("/v1/models")
    def models(request: Request) -> Any:
        if refused(request):
            return _error(401, "give an API key: Authorization: Bearer KEY", "missing_api_key")
        entry = {
            "id": extractor.fingerprint.model,
            "fingerprint": extractor.fingerprint.to_dict(),
            "outputs": outputs,
            "image_size": [config.height, config.width],
            "patch_grid": list(model.patch_embed.grid_size) if "patches" in outputs else None,
            "crop_pct": config.crop_pct,
            "crop_mode": config.crop_mode,
        }
        return {"object": "list", "data": [entry]}

    @app.post("/v1/features")
    async def features(request: Request) -> Any:
        if refused(request):
            return _error(401, "this API key is not known here", "invalid_api_key")
        try:
            prepared = extractor.prepare(await request.body())
        except RejectError:
            return _error(422, "the image is damaged and cannot be decoded", "corrupt")
        with torch.inference_mode():
            pixels = torch.from_numpy(prepared.pixels[None]).permute(0, 3, 1, 2) / 255
            tokens = model.forward_features((pixels - extractor._mean) / extractor._std)
            embedding = model.forward_head(tokens, pre_logits=True)[0]
            patches = tokens[0, model.num_prefix_tokens :].numpy().astype("<f2")
        item: dict[str, Any] = {"index": 0, "width": prepared.width, "height": prepared.height}
        if "embedding" in outputs:
            item["embedding"] = embedding.tolist()
        if "patches" in outputs:
            shape = [*model.patch_embed.grid_size, patches.shape[1]]
            item["patches"] = {"shape": shape, "dtype": "float16", "base64": base64.b64encode(patches).decode()}
        if "classes" in outputs:
            shares = torch.softmax(embedding, 0).topk(5)
            item["classes"] = [
                {"index": int(i), "name": "tabby, tabby cat" if rank == 0 else None, "probability": 100 * float(share)}
                for rank, (share, i) in enumerate(zip(*shares, strict=True))
            ]
        digest = extractor.fingerprint.digest
        return {"object": "list", "model": extractor.fingerprint.model, "fingerprint": digest, "data": [item]}

    app.mount("/", Page())
    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serves an app on a free port of this machine, from a thread; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
