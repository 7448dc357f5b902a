"""The JSON of the endpoint, for requests that are checked and for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class LimitObject(BaseModel):
    """A bound of the configuration that was met."""

    name: str
    value: float


class ErrorObject(BaseModel):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None
    code: str | None
    limit: LimitObject | None = None


class ErrorAnswer(BaseModel):
    """What every refusal answers."""

    error: ErrorObject


class EmbeddingRequest(BaseModel):
    """OpenAI's request. An image is a data URI, or its bytes in base64; other fields of OpenAI's are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input: str | list[str] = Field(description="one image or several: data:image/jpeg;base64,… or base64 alone")
    model: str = Field(description="the model that is served, as GET /v1/models names it")
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64 is of little-endian float32"
    )
    dimensions: int | None = Field(default=None, description="the model's own width; no other can be had")


class Embedding(BaseModel):
    """One image's vector, or why there is none."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str | None
    error: ErrorObject | None = None


class Usage(BaseModel):
    """OpenAI's usage; the images count as tokens, since there are no others."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """OpenAI's answer, with the fingerprint."""

    object: Literal["list"] = "list"
    model: str
    fingerprint: str
    data: list[Embedding]
    usage: Usage


class ClassScore(BaseModel):
    """A class and its probability in percent."""

    index: int
    name: str | None
    probability: float


class Patches(BaseModel):
    """Patch tokens as (rows, columns, width), little-endian, in base64."""

    shape: list[int]
    dtype: str
    base64: str


class Features(BaseModel):
    """One image's outputs, as many as were asked for, or why there are none."""

    index: int
    width: int | None = None
    height: int | None = None
    embedding: list[float] | None = None
    patches: Patches | None = None
    classes: list[ClassScore] | None = None
    error: ErrorObject | None = None


class FeaturesAnswer(BaseModel):
    """What /v1/features and /v1/classify answer in JSON."""

    object: Literal["list"] = "list"
    model: str
    fingerprint: str
    data: list[Features]


class Model(BaseModel):
    """What is served. The crop is in timm's terms: crop_pct is crop size over resized size."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["raysight"] = "raysight"
    fingerprint: dict[str, Any]
    outputs: list[str]
    image_size: list[int]
    crop_pct: float
    crop_mode: str
    patch_grid: list[int] | None
    has_classes: bool


class ModelsAnswer(BaseModel):
    """OpenAI's list of models: the one there is."""

    object: Literal["list"] = "list"
    data: list[Model]


class Status(BaseModel):
    """Of the probes."""

    status: str
