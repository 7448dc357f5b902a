"""Who is let in: bearer keys, of which a file holds the digests; without one, this machine alone."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import serving
from serving import JPEG, Client, picture

from pipeline.errors import UsageError
from serve.auth import is_loopback, load_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.extractor import Extractor

KEYS = ("first-key", "schlüssel-2")
GUARDED = ("/v1/models", "/v1/models/resnet18", "/metrics")
DOORS = ("/v1/embeddings", "/v1/features", "/v1/classify")


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return serving.load("resnet18", "random:0")


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in KEYS]
    path.write_text(f"# for tests\n{digests[0]}  team one\n\n{digests[1]}\n")
    return path


@pytest.fixture(scope="module")
def client(extractor: Extractor, key_file: Path) -> Iterator[Client]:
    with serving.client(extractor, load_keys(str(key_file)), address="http://images.example") as client:
        yield client


def bearer(key: str) -> dict[str, str | bytes]:
    return {"authorization": f"Bearer {key}".encode()}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_file_opens_every_door(client: Client, key: str) -> None:
    assert [client.get(url, headers=bearer(key)).status_code for url in GUARDED] == [200] * 3
    assert client.post("/v1/features", content=picture(), headers={**JPEG, **bearer(key)}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer first-key2"},
        {"authorization": "Basic first-key"},
        {"authorization": "first-key"},
        {"x-api-key": "first-key"},
        {"authorization": f"Bearer {hashlib.sha256(b'first-key').hexdigest()}"},
        {"authorization": b"Bearer \xff\xfe"},
    ],
    ids=str,
)
def test_without_a_known_key_every_door_is_a_401(client: Client, headers: dict[str, str | bytes]) -> None:
    answers = [client.get(url, headers=headers) for url in GUARDED]
    answers += [client.post(url, content=b"x", headers=headers) for url in DOORS]
    assert [answer.status_code for answer in answers] == [401] * 6
    assert all(answer.headers["www-authenticate"] == "Bearer" for answer in answers)
    assert all(answer.json()["error"]["type"] == "authentication_error" for answer in answers)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": "127.0.0.1:8000"},
        {"host": "images.example/healthz?"},
        {"host": "images.example#/docs"},
        {"x-forwarded-for": "127.0.0.1"},
        {"x-forwarded-host": "localhost"},
        {"x-original-url": "/healthz"},
        {"x-rewrite-url": "/healthz"},
        {"x-forwarded-prefix": "/healthz"},
    ],
    ids=str,
)
def test_no_header_but_the_key_opens_a_door(client: Client, headers: dict[str, str]) -> None:
    assert [client.get(url, headers=headers).status_code for url in GUARDED] == [401] * 3


@pytest.mark.parametrize(
    "url",
    [
        "//v1/models",
        "/v1/models/",
        "/v1//models",
        "/./v1/models",
        "/healthz/../v1/models",
        "/healthz%2f..%2fv1%2fmodels",
        "/V1/MODELS",
        "/v1/models%00",
        "/v1/models;/healthz",
        "/v1/models?/healthz",
        "/%76%31/models",
        "/docs/../metrics",
        "/..%2f..%2fpipeline/config.py",
        "/%2e%2e/%2e%2e/pyproject.toml",
    ],
)
def test_no_spelling_of_a_path_goes_around_the_key(client: Client, url: str) -> None:
    answer = client.get(url)
    assert answer.status_code in (401, 404, 405, 307)
    assert "fingerprint" not in answer.text


@pytest.mark.parametrize("url", ["/healthz", "/readyz", "/openapi.json"])
def test_probes_and_the_document_need_no_key(client: Client, url: str) -> None:
    assert client.get(url).status_code == 200


def test_every_other_path_of_the_document_wants_a_key(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in paths.keys() - {"/healthz", "/readyz"}:
        for method in paths[path]:
            assert client.request(method.upper(), path).status_code == 401, path


def test_the_keys_that_the_guide_makes_are_let_in(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
    make, keep = (line for line in guide.splitlines() if line.startswith(("KEY=", "printf %s")))
    done = subprocess.run(
        ["bash", "-euc", f'{make}\n{keep}\necho "$KEY"'], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    load_keys(str(tmp_path / "keys")).check(f"Bearer {done.stdout.strip()}")
    assert done.stdout.strip() not in (tmp_path / "keys").read_text()


def test_a_refused_request_holds_no_place_and_its_body_is_not_read(client: Client) -> None:
    async def untouched() -> Iterator[bytes]:  # type: ignore[misc]
        raise AssertionError("the body was read")
        yield b""

    assert client.post("/v1/features", content=untouched(), headers=JPEG).status_code == 401
    assert client.engine.admission.requests == 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "127.8.8.8"])
def test_without_keys_this_machine_is_answered(extractor: Extractor, host: str) -> None:
    with serving.client(extractor) as client:
        assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io", ""])
def test_without_keys_a_name_that_was_pointed_here_is_refused(extractor: Extractor, host: str) -> None:
    with serving.client(extractor) as client:
        answer = client.get("/v1/models", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no API key"),
        ("# nothing\n", "holds no API key"),
        ("plain-secret\n", "line 1"),
        (f"{'a' * 64}\n{'A' * 64}\n", "line 2"),
    ],
)
def test_a_key_file_with_anything_but_digests_is_refused_without_showing_it(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(UsageError, match=problem) as caught:
        load_keys(str(path))
    assert "plain-secret" not in str(caught.value)


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file or directory"):
        load_keys(str(tmp_path / "none"))


def test_a_key_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(hashlib.sha256(b"\xff").digest() + b"\xff")
    with pytest.raises(UsageError, match="cannot be read: not a text file"):
        load_keys(str(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)],
)
def test_loopback_addresses_are_told_from_others(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
