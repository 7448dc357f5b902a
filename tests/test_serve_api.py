"""The doors of the endpoint, in this process: shapes, encodings, numbers, and what becomes of bad images."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import schemathesis
import serving
import timm
import torch
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from serving import JPEG, Client, bomb, data_uri, picture, until
from timm.data import create_transform, resolve_model_data_config

from pipeline.config import ImageLimits
from pipeline.sections import ServeConfig
from serve.api import create_app
from serve.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx
    from numpy.typing import NDArray

    from pipeline.extractor import Extractor

MODEL = "resnet18"
NAMES = ("rocket.jpg", "coins.png", "china.jpg")


@pytest.fixture(scope="module")
def extractor(make_checkpoint: Callable[..., Path]) -> Extractor:
    return serving.load(MODEL, str(make_checkpoint(MODEL)))


@pytest.fixture(scope="module")
def client(extractor: Extractor) -> Iterator[Client]:
    with serving.client(extractor) as client:
        yield client


@pytest.fixture(scope="module")
def expected(make_checkpoint: Callable[..., Path], photograph_paths: dict[str, Path]) -> NDArray[np.float32]:
    """(3, 512) float32: what timm makes of ``NAMES``."""
    overlay = {"file": str(make_checkpoint(MODEL)), "hf_hub_id": None, "url": ""}
    model = timm.create_model(MODEL, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        images = [transform(Image.open(photograph_paths[name]).convert("RGB")) for name in NAMES]
        return model(torch.stack(images)).numpy()


@pytest.fixture(scope="module")
def files(photographs: dict[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (name, photographs[name])) for name in NAMES]


def vectors(answer: httpx.Response) -> NDArray[np.float32]:
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)


def test_multipart_json_gives_timms_numbers_in_order(
    client: Client, files: list[Any], expected: NDArray[np.float32]
) -> None:
    answer = client.post("/v1/features", files=files)
    assert answer.status_code == 200
    np.testing.assert_allclose(vectors(answer), expected, rtol=1e-5, atol=1e-5)
    assert [(item["index"], item["width"], item["height"]) for item in answer.json()["data"]] == [
        (0, 640, 427),
        (1, 384, 303),
        (2, 640, 427),
    ]


def test_a_raw_image_gives_the_same_as_in_a_form(
    client: Client, photographs: dict[str, bytes], expected: NDArray[np.float32]
) -> None:
    np.testing.assert_allclose(vectors(client.features(photographs[NAMES[0]])), expected[:1], rtol=1e-5, atol=1e-5)


def test_npy_is_the_matrix(client: Client, files: list[Any], expected: NDArray[np.float32]) -> None:
    answer = client.post("/v1/features", files=files, headers={"accept": "application/x-npy"})
    assert answer.headers["content-type"] == "application/x-npy"
    matrix = np.load(io.BytesIO(answer.content))
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, expected, rtol=1e-5, atol=1e-5)


def test_arrow_has_the_columns_of_the_dataset_and_the_names_that_the_client_gave(
    client: Client, files: list[Any], expected: NDArray[np.float32]
) -> None:
    bad = ("file", ("broken.jpg", b"no image"))
    answer = client.post("/v1/features", files=[*files, bad], headers={"accept": "application/vnd.apache.arrow.stream"})
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.column_names == ["uri", "etag", "width", "height", "embedding", "stage", "error", "message"]
    assert table["uri"].to_pylist() == [*NAMES, "broken.jpg"]
    assert table["error"].to_pylist() == [None, None, None, "NotAnImage"]
    np.testing.assert_allclose(np.stack(table["embedding"].to_pylist()[:3]), expected, rtol=1e-5, atol=1e-5)


def test_openais_shape_has_floats_or_base64_of_the_same_numbers(
    client: Client, photographs: dict[str, bytes], expected: NDArray[np.float32]
) -> None:
    inputs = [data_uri(photographs[NAMES[0]]), base64.b64encode(photographs[NAMES[1]]).decode()]
    floats = client.post("/v1/embeddings", json={"model": MODEL, "input": inputs})
    coded = client.post("/v1/embeddings", json={"model": MODEL, "input": inputs, "encoding_format": "base64"})
    np.testing.assert_allclose(vectors(floats), expected[:2], rtol=1e-5, atol=1e-5)
    for item, vector in zip(coded.json()["data"], vectors(floats), strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), vector)
    assert floats.json()["object"] == "list"
    assert floats.json()["model"] == MODEL
    assert floats.json()["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


def test_one_corrupt_image_of_32_is_an_error_for_itself_alone(client: Client) -> None:
    images = [data_uri(picture(seed=seed)) for seed in range(32)]
    images[13] = data_uri(picture()[:500])
    data = client.post("/v1/embeddings", json={"model": MODEL, "input": images}).json()["data"]
    assert [item["index"] for item in data] == list(range(32))
    assert [item["index"] for item in data if item["embedding"] is None] == [13]
    assert data[13]["error"]["code"] in ("truncated", "corrupt")
    assert all(np.isfinite(item["embedding"]).all() for item in data if item["index"] != 13)


def test_the_fingerprint_stands_in_every_answer(client: Client, extractor: Extractor) -> None:
    digest = extractor.fingerprint.digest
    answers = [client.features(picture()), client.get("/v1/models"), client.features(b"x"), client.get("/nowhere")]
    assert [answer.headers["x-raysight-fingerprint"] for answer in answers] == [digest] * 4
    assert answers[0].json()["fingerprint"] == digest
    assert answers[1].json()["data"][0]["fingerprint"] == {"digest": digest, **extractor.fingerprint.to_dict()}


def test_the_model_is_listed_as_openais_client_expects(client: Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["owned_by"]) == (MODEL, "model", "raysight")
    assert model["image_size"] == [224, 224]
    assert client.get(f"/v1/models/{MODEL}").json() == model
    assert client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize("url", ["/healthz", "/readyz", "/docs", "/openapi.json"])
def test_probes_and_the_documentation_answer(client: Client, url: str) -> None:
    assert client.get(url).status_code == 200


def test_the_figures_count_answers_and_images(client: Client) -> None:
    client.features(b"no image")
    client.get("/some/path/that/does/not/exist")
    text = client.get("/metrics").text
    assert 'raysight_serve_requests_total{route="/v1/features",status="422"}' in text
    assert 'raysight_serve_images_total{outcome="NotAnImage"}' in text
    assert "does/not/exist" not in text


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.jpg",
        "http://127.0.0.1/",
        "file:///etc/passwd",
        "s3://bucket/a.jpg",
        " HTTPS://x/",
        "ftp://x",
    ],
)
def test_a_url_is_not_fetched_but_refused_by_name(client: Client, url: str) -> None:
    answer = client.post("/v1/embeddings", json={"model": MODEL, "input": [picture_uri(), url]})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "url_not_supported"
    assert answer.json()["error"]["param"] == "input[1]"


def picture_uri() -> str:
    return data_uri(picture())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"\xff\xfe", None),
        (b"{}", "input"),
        (b'{"input": "x"}', "model"),
        (b'{"input": [1, 2], "model": "resnet18"}', "input"),
        (b'{"input": [], "model": "resnet18"}', None),
        (b'{"input": "%%%", "model": "resnet18"}', "input[0]"),
        (b'{"input": "data:image/png,abc", "model": "resnet18"}', "input[0]"),
        (b'{"input": "data:text/html;base64,abcd", "model": "resnet18"}', "input[0]"),
        (b'{"input": "abcd", "model": "resnet18", "encoding_format": "int8"}', "encoding_format"),
        (b'{"input": "abcd", "model": "resnet18", "dimensions": 7}', "dimensions"),
    ],
)
def test_a_malformed_request_is_a_400_that_names_the_field(client: Client, body: bytes, param: str | None) -> None:
    answer = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (picture()[:600], "truncated"),
        (b"GIF89a", None),
        (b"\xff\xd8\xff\xe0" + bytes(100), None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%PDF-1.7", "not_an_image"),
        (picture(kind="PNG")[:-40], None),
        (bomb(), "too_many_pixels"),
    ],
    ids=["cut", "gif header", "jpeg of zeros", "svg", "pdf", "cut png", "bomb"],
)
def test_a_single_image_that_cannot_be_used_is_a_422(client: Client, data: bytes, code: str | None) -> None:
    answer = client.features(data)
    assert answer.status_code == 422
    assert code is None or answer.json()["error"]["code"] == code
    assert "/" not in answer.json()["error"]["message"]


def test_damage_of_every_kind_is_a_422_or_an_image_and_leaves_no_memory_behind() -> None:
    """Files of all formats, cut anywhere or with bytes that are others: no accident, and nothing that piles up."""
    random = np.random.default_rng(0)
    whole = [picture(kind=kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]

    def damaged(data: bytes) -> bytes:
        values = np.frombuffer(data, np.uint8).copy()
        places = random.integers(0, len(values) if random.random() < 0.5 else 64, random.integers(1, 8))
        values[places] = random.integers(0, 256, len(places))
        end = len(values) if random.random() < 0.7 else random.integers(1, len(values))
        return values[:end].tobytes()

    def round_of(client: Client, images: int) -> list[dict[str, Any]]:
        files = [("file", damaged(whole[number % len(whole)])) for number in range(images)]
        answer = client.post("/v1/features", files=files)
        assert answer.status_code == 200
        data: list[dict[str, Any]] = answer.json()["data"]
        return data

    with serving.client(serving.load("test_vit", "random:0")) as client:
        items = [item for _ in range(3) for item in round_of(client, 48)]
        before = psutil.Process().memory_info().rss
        after: list[int] = []
        for _ in range(6):
            items += round_of(client, 48)
            after.append(psutil.Process().memory_info().rss)
    # A header that damage made large may fill the heap for a while, and does not fill it again and again.
    assert min(after) < before + (256 << 20)
    assert all(("embedding" in item) != ("error" in item) for item in items)
    codes = {item["error"]["code"] for item in items if "error" in item}
    assert codes >= {"truncated", "corrupt", "not_an_image"}
    assert "internal_error" not in codes


def test_the_claimed_type_does_not_matter(client: Client) -> None:
    data = picture(kind="PNG")
    as_jpeg = client.post("/v1/features", content=data, headers=JPEG)
    as_bytes = client.post("/v1/features", content=data, headers={"content-type": "application/octet-stream"})
    assert as_jpeg.json() == as_bytes.json()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"content": b"abc"}, 415),
        ({"content": b"abc", "headers": {"content-type": "text/plain"}}, 415),
        ({"content": b"", "headers": JPEG}, 400),
        ({"content": b"abc", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"content": b"--x\r\nnonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ({"data": {"a": "b"}, "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ({"content": picture(), "headers": {**JPEG, "accept": "text/html"}}, 406),
        ({"content": picture(), "headers": JPEG, "params": {"outputs": "nothing"}}, 400),
        ({"content": picture(), "headers": JPEG, "params": {"outputs": ""}}, 400),
        ({"content": picture(), "headers": JPEG, "params": {"outputs": "classes"}}, 400),
    ],
)
def test_what_is_no_image_request_is_refused(client: Client, options: dict[str, Any], status: int) -> None:
    answer = client.post("/v1/features", **options)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize("url", ["/v1/nothing", "/v1/features/", "/static/", "/docs/../serve/page.py"])
def test_where_nothing_is_every_method_gets_a_404(client: Client, method: str, url: str) -> None:
    answer = client.request(method, url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("/v1/embeddings", "POST"),
        ("/v1/features", "POST"),
        ("/v1/classify", "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/models/test_vit", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/healthz", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/main.js", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
    ],
)
def test_another_method_is_a_405_that_names_the_right_one(client: Client, url: str, allowed: str) -> None:
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - set(allowed.split(", ")):
        answer = client.request(method, url)
        assert answer.status_code == 405, (method, answer.text)
        assert sorted(answer.headers["allow"].split(", ")) == sorted(allowed.split(", "))
        if method != "HEAD":
            assert answer.json()["error"]["code"] == "method_not_allowed"
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("url", ["/", "/healthz", "/readyz", "/v1/models", "/main.js", "/docs", "/openapi.json"])
def test_head_answers_as_get_does_without_a_body(client: Client, url: str) -> None:
    head, get = client.request("HEAD", url), client.get(url)
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "date": ""} == {**get.headers, "date": ""}
    assert len(get.content) == int(head.headers["content-length"])


def test_clients_that_go_away_are_no_failures_in_the_figures(extractor: Extractor) -> None:
    gated = serving.GatedExtractor.of(extractor)

    with serving.client(gated) as client:
        waiting = client.begin("POST", "/v1/features", content=picture(), headers=JPEG)
        assert gated.began.wait(30)
        waiting.cancel()
        until(lambda: client.engine.admission.requests == 0)
        gated.gate.set()
        figures = [line for line in client.get("/metrics").text.splitlines() if "requests_total{" in line]
    assert figures == ['raysight_serve_requests_total{route="/v1/features",status="499"} 1.0']


def test_an_accident_is_a_500_that_tells_nothing(extractor: Extractor) -> None:
    broken = serving.GatedExtractor.of(extractor)

    def forward(_: object) -> None:
        raise RuntimeError("secret in /some/path")

    broken.forward = forward  # type: ignore[method-assign]
    with serving.client(broken) as client:
        answer = client.features(picture())
        figures = client.get("/metrics").text
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-raysight-fingerprint"] == extractor.fingerprint.digest
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert 'raysight_serve_requests_total{route="/v1/features",status="500"} 1.0' in figures
    assert "secret" not in answer.text
    assert "path" not in answer.text


def test_what_the_openapi_document_allows_gets_no_5xx_and_the_answers_that_it_names(extractor: Extractor) -> None:
    app = create_app(Engine(extractor, ImageLimits(), ServeConfig(), threads=2), None)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/embeddings", "/v1/features", "/v1/classify"}
    for operation in operations:
        check_operation(operation)


def check_operation(operation: Any) -> None:
    from hypothesis import HealthCheck, Phase, given, settings

    @given(case=operation.as_strategy())
    @settings(
        max_examples=15,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
        case.call_and_validate(checks=checks, headers={"host": "localhost"})

    check()
