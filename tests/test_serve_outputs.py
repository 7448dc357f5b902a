"""Patch tokens and classes over HTTP, against timm's own code; what is served beside what was asked for."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import serving
import timm
import torch
from PIL import Image
from serving import JPEG, Client
from timm.data import create_transform, resolve_model_data_config

from pipeline.config import ImageLimits, ModelConfig, StorageConfig
from pipeline.extractor import load_extractor
from serve.loading import load_served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

MODEL = "test_vit"
NAMES = ("rocket.jpg", "china.jpg")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(make_checkpoint: Callable[..., Path]) -> ModelConfig:
    weights = str(make_checkpoint(MODEL))
    return ModelConfig(
        name=MODEL,
        weights=weights,
        implementation="reference",
        precision="fp32",
        features=("embedding", "patches", "classes"),
    )


@pytest.fixture(scope="module")
def client(config: ModelConfig) -> Iterator[Client]:
    with serving.client(load_served(config, ImageLimits(), CPU, StorageConfig())) as client:
        yield client


@pytest.fixture(scope="module")
def reference(config: ModelConfig, photograph_paths: dict[str, Path]) -> dict[str, Any]:
    """What timm makes of ``NAMES``: patch tokens, and percent of every class."""
    overlay = {"file": config.weights, "hf_hub_id": None, "url": ""}
    model = timm.create_model(MODEL, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(photograph_paths[name]).convert("RGB")) for name in NAMES])
        tokens = model.forward_features(pixels)[:, model.num_prefix_tokens :].numpy()
        return {"patches": tokens, "percent": (model(pixels).softmax(dim=1) * 100).numpy()}


@pytest.fixture(scope="module")
def files(photographs: Mapping[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (name, photographs[name])) for name in NAMES]


def test_patches_come_as_a_grid_in_float16(client: Client, files: list[Any], reference: dict[str, Any]) -> None:
    grid = client.get("/v1/models").json()["data"][0]["patch_grid"]
    data = client.post("/v1/features?outputs=embedding,patches", files=files).json()["data"]
    for item, tokens in zip(data, reference["patches"], strict=True):
        patches = item["patches"]
        assert patches["shape"] == [*grid, tokens.shape[-1]]
        assert patches["dtype"] == "float16"
        values = np.frombuffer(base64.b64decode(patches["base64"]), "<f2").reshape(tokens.shape)
        np.testing.assert_allclose(values, tokens, rtol=1e-3, atol=1e-3)


def test_patches_come_as_npy_and_arrow_with_the_same_numbers(client: Client, files: list[Any]) -> None:
    url = "/v1/features?outputs=patches"
    npy = client.post(url, files=files, headers={"accept": "application/x-npy"})
    arrow = client.post(url, files=files, headers={"accept": "application/vnd.apache.arrow.stream"})
    cube = np.load(io.BytesIO(npy.content))
    rows = pa.ipc.open_stream(arrow.content).read_all()["patches"].to_pylist()
    np.testing.assert_array_equal(cube.reshape(len(files), -1), np.array(rows, np.float16).reshape(len(files), -1))


@pytest.mark.parametrize("url", ["/v1/classify", "/v1/features?outputs=classes"])
def test_classes_are_timms_top_5_in_percent(
    client: Client, files: list[Any], reference: dict[str, Any], url: str
) -> None:
    data = client.post(url, files=files).json()["data"]
    for item, percent in zip(data, reference["percent"], strict=True):
        found = {entry["index"]: entry["probability"] for entry in item["classes"]}
        assert list(found) == list(np.argsort(-percent)[:5])
        np.testing.assert_allclose(list(found.values()), np.sort(percent)[::-1][:5], rtol=1e-4)


def test_an_answers_fingerprint_is_that_of_the_outputs_asked_for(
    client: Client, config: ModelConfig, photographs: Mapping[str, bytes]
) -> None:
    from dataclasses import replace

    alone = load_extractor(replace(config, features=("embedding",)), ImageLimits(), CPU)
    answer = client.post("/v1/features", content=photographs[NAMES[0]], headers=JPEG)
    assert answer.json()["fingerprint"] == alone.fingerprint.digest
    assert client.get("/v1/models").json()["data"][0]["fingerprint"]["digest"] != alone.fingerprint.digest


def test_patches_are_served_beside_what_was_configured(config: ModelConfig) -> None:
    from dataclasses import replace

    served = load_served(replace(config, features=("embedding",)), ImageLimits(), CPU, StorageConfig())
    assert [field.name for field in served.outputs] == ["embedding", "patches"]
