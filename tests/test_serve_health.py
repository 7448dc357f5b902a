"""A replica whose device is lost says so, and Serve replaces it."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
import serving
import torch
from serving import picture

from pipeline.config import ImageLimits, ModelConfig
from pipeline.extractor import Extractor, load_extractor
from pipeline.sections import ServeConfig
from serve.engine import Engine


class Lost(Extractor):
    """A model whose device fails."""

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")


async def _health(extractor: Extractor, *, images: int) -> None:
    engine = Engine(extractor, ImageLimits(), ServeConfig(), 1)
    engine.start()
    try:
        await engine.check()
        for _ in range(images):
            with pytest.raises(torch.AcceleratorError):
                await engine._batcher.submit(np.zeros((160, 160, 3), np.uint8), time.monotonic() + 60)
        await engine.check()
    finally:
        await engine.stop()


def test_health_fails_once_a_forward_has_met_a_lost_device() -> None:
    config = ModelConfig("test_vit", "random:0", precision="fp32")
    sound = load_extractor(config, ImageLimits())
    asyncio.run(_health(sound, images=0))
    lost = load_extractor(config, ImageLimits())
    lost.passes._compute = lambda pixels: lost._compute(Lost.encode.__get__(lost), pixels)
    with pytest.raises(torch.AcceleratorError, match="ECC"):
        asyncio.run(_health(lost, images=1))


def test_a_lost_device_is_told_once_and_clients_are_asked_to_come_again() -> None:
    """Not with a 500, after which nobody would: another replica may answer, or one in this one's place."""
    lost = serving.load("test_vit", "random:0")
    lost.passes._compute = lambda pixels: lost._compute(Lost.encode.__get__(lost), pixels)
    told = []
    with serving.client(lost) as client:
        client.engine.on_lost = lambda: told.append(client.engine.admission.draining)
        first = client.post("/v1/features", files=[("file", picture())] * 8)
        second = client.features(picture())
        assert client.get("/readyz").status_code == 503
    assert [answer.status_code for answer in (first, second)] == [503, 503]
    assert [answer.json()["error"]["code"] for answer in (first, second)] == ["device_lost", "shutting_down"]
    assert all("retry-after" in answer.headers for answer in (first, second))
    assert told == [True]
