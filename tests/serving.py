"""The endpoint's app in this process, without ray: an event loop in a thread, and a client that calls into it."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import threading
import time
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import torch
from PIL import Image

from pipeline.config import ImageLimits, ModelConfig
from pipeline.extractor import Extractor, load_extractor
from pipeline.sections import ServeConfig
from serve.api import create_app
from serve.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from serve.auth import KeyRing

JPEG = {"content-type": "image/jpeg"}


class Client:
    """Calls an app as HTTP clients would; several requests at once where asked to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient, engine: Engine) -> None:
        self.engine = engine
        self._loop = loop
        self._client = client

    def begin(self, method: str, url: str, **options: Any) -> Any:
        """A future of the answer."""
        return asyncio.run_coroutine_threadsafe(self._client.request(method, url, **options), self._loop)

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self.begin(method, url, **options).result(60)

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return self.request("POST", url, **options)

    def features(self, data: bytes, outputs: str = "embedding", **options: Any) -> httpx.Response:
        return self.post(f"/v1/features?outputs={outputs}", content=data, headers=JPEG, **options)


@contextmanager
def client(
    extractor: Extractor,
    keys: KeyRing | None = None,
    limits: ImageLimits | None = None,
    address: str = "http://localhost",
    **settings: Any,
) -> Iterator[Client]:
    """An app around an extractor, with these settings of ``[serve]``."""
    engine = Engine(extractor, limits or ImageLimits(), ServeConfig(**settings), threads=2)
    app = create_app(engine, keys)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def enter() -> tuple[Any, httpx.AsyncClient]:
        lifespan = app.router.lifespan_context(app)
        await lifespan.__aenter__()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return lifespan, httpx.AsyncClient(transport=transport, base_url=address)

    lifespan, inner = asyncio.run_coroutine_threadsafe(enter(), loop).result(60)

    async def leave() -> None:
        await inner.aclose()
        await lifespan.__aexit__(None, None, None)

    try:
        yield Client(loop, inner, engine)
    finally:
        asyncio.run_coroutine_threadsafe(leave(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class GatedExtractor(Extractor):
    """Computes when the test lets it, and notes what reached the device."""

    gate: threading.Event
    began: threading.Event
    batches: list[int]
    threads: list[int]

    @classmethod
    def of(cls, extractor: Extractor) -> GatedExtractor:
        gated = cls.__new__(cls)
        gated.__dict__.update(extractor.__dict__)
        gated.gate, gated.began, gated.batches, gated.threads = threading.Event(), threading.Event(), [], []
        return gated

    def forward(self, batch: Sequence[np.ndarray[Any, Any]]) -> dict[str, Any]:
        self.threads.append(torch.get_num_threads())
        self.batches.append(len(batch))
        self.began.set()
        assert self.gate.wait(60)
        return super().forward(batch)


def load(name: str, weights: str, **settings: Any) -> Extractor:
    """An extractor whose numbers are timm's own."""
    model = ModelConfig(name=name, weights=weights, implementation="reference", precision="fp32", **settings)
    return load_extractor(model, ImageLimits())


def picture(width: int = 64, height: int = 48, kind: str = "JPEG", seed: int = 0) -> bytes:
    """An encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of a few hundred bytes that claims gigapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def until(condition: Callable[[], Any]) -> None:
    """Waits for a condition, half a minute at most."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
