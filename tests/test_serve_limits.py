"""The bounds of a replica, each met: which status, which limit with which value, and what never reaches the device."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import serving
from serving import JPEG, GatedExtractor, bomb, data_uri, picture, until

from pipeline.config import ImageLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx

    from pipeline.extractor import Extractor

MODEL = "resnet18"


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return serving.load(MODEL, "random:0")


@pytest.fixture
def gated(extractor: Extractor) -> Iterator[GatedExtractor]:
    """A device that computes once its gate is open."""
    gated = GatedExtractor.of(extractor)
    yield gated
    gated.gate.set()


def refusal(answer: httpx.Response) -> tuple[int, str, float]:
    """Status, and the limit's name and value."""
    limit = answer.json()["error"]["limit"]
    return answer.status_code, limit["name"], limit["value"]


def test_a_body_that_declares_too_much_is_a_413(extractor: Extractor) -> None:
    with serving.client(extractor, max_body_bytes=1000) as client:
        assert refusal(client.features(bytes(1001))) == (413, "max_body_bytes", 1000)
        json = client.post("/v1/embeddings", json={"model": MODEL, "input": data_uri(picture())})
        assert refusal(json) == (413, "max_body_bytes", 1000)
        assert refusal(client.post("/v1/features", files={"file": bytes(1001)})) == (413, "max_body_bytes", 1000)


@pytest.mark.parametrize("kind", ["image/jpeg", "multipart/form-data; boundary=x"])
def test_a_body_without_a_length_is_read_no_further_than_the_bound(extractor: Extractor, kind: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
        while True:
            sent += 100
            yield bytes(100)

    with serving.client(extractor, max_body_bytes=1000) as client:
        answer = client.post("/v1/features", content=endless(), headers={"content-type": kind})
    assert refusal(answer) == (413, "max_body_bytes", 1000)
    assert sent <= 1100


def test_too_many_images_are_a_400_at_every_door(extractor: Extractor) -> None:
    with serving.client(extractor, max_images=2) as client:
        form = client.post("/v1/features", files=[("file", picture())] * 3)
        json = client.post("/v1/embeddings", json={"model": MODEL, "input": [data_uri(picture())] * 3})
        assert refusal(form) == refusal(json) == (400, "max_images", 2)
        assert client.post("/v1/features", files=[("file", picture())] * 2).status_code == 200


def test_pixels_are_counted_in_the_header_and_a_bomb_costs_no_memory(extractor: Extractor) -> None:
    limits = ImageLimits(max_pixels=64 * 48)
    with serving.client(extractor, limits=limits) as client:
        assert client.features(picture(64, 48)).status_code == 200
        assert refusal(client.features(picture(64, 49))) == (422, "max_pixels", 64 * 48)
        tracemalloc.start()
        assert refusal(client.features(bomb())) == (422, "max_pixels", 64 * 48)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20_000_000  # of the 7.5 GB that it claims


def test_an_image_of_more_bytes_than_one_may_have_is_a_422(extractor: Extractor) -> None:
    with serving.client(extractor, limits=ImageLimits(max_bytes=500)) as client:
        assert refusal(client.features(picture())) == (422, "max_bytes", 500)


def test_an_image_larger_than_all_pixels_in_flight_is_refused_at_once(extractor: Extractor) -> None:
    with serving.client(extractor, max_megapixels_in_flight=0.001) as client:
        assert refusal(client.features(picture())) == (422, "max_pixels", 1000)


def test_a_full_queue_is_a_429_with_retry_after(gated: GatedExtractor) -> None:
    with serving.client(gated, max_queue=2) as client:
        first, second = (client.begin("POST", "/v1/features", content=picture(), headers=JPEG) for _ in range(2))
        until(lambda: client.engine.admission.images == 2)
        refused = client.features(picture())
        assert refusal(refused) == (429, "max_queue", 2)
        assert int(refused.headers["retry-after"]) >= 1
        gated.gate.set()
        assert (first.result(30).status_code, second.result(30).status_code) == (200, 200)
        assert client.features(picture()).status_code == 200
        assert client.engine.admission.images == 0


def test_a_request_counts_with_all_its_images(gated: GatedExtractor) -> None:
    gated.gate.set()
    with serving.client(gated, max_queue=3) as client:
        assert refusal(client.post("/v1/features", files=[("file", picture())] * 4)) == (400, "max_queue", 3)
        assert client.post("/v1/features", files=[("file", picture())] * 3).status_code == 200


def test_fewer_are_let_in_when_the_device_could_not_answer_them_in_time(gated: GatedExtractor) -> None:
    with serving.client(gated, max_queue=100, request_timeout_s=30.0) as client:
        client.engine.admission.seconds_per_image = 10.0
        begun = client.begin("POST", "/v1/features", content=picture(), headers=JPEG)
        assert gated.began.wait(30)
        assert refusal(client.features(picture())) == (429, "max_queue", 1)
        gated.gate.set()
        assert begun.result(30).status_code == 200


def test_a_request_that_is_alone_is_let_in_however_slow_the_device(gated: GatedExtractor) -> None:
    gated.gate.set()
    with serving.client(gated, request_timeout_s=30.0) as client:
        client.engine.admission.seconds_per_image = 10.0
        assert client.post("/v1/features", files=[("file", picture())] * 4).status_code == 200


def test_images_wait_for_their_share_of_the_pixels_in_flight(extractor: Extractor) -> None:
    one_at_a_time = 64 * 48 / 1e6
    with serving.client(extractor, max_megapixels_in_flight=one_at_a_time) as client:
        assert client.post("/v1/features", files=[("file", picture())] * 8).status_code == 200


def test_who_gets_no_share_of_the_pixels_in_time_is_a_503(extractor: Extractor) -> None:
    slow = GatedExtractor.of(extractor)

    def prepare(data: bytes) -> Any:
        assert slow.gate.wait(60)
        return extractor.prepare(data)

    slow.prepare = prepare  # type: ignore[method-assign,assignment]
    share = 64 * 48 / 1e6
    with serving.client(slow, max_megapixels_in_flight=share, request_timeout_s=1.0) as client:
        first = client.begin("POST", "/v1/features", content=picture(), headers=JPEG)
        until(lambda: client.engine.admission.images == 1)
        second = client.features(picture())
        assert first.result(30).status_code == 504
        slow.gate.set()
    assert refusal(second) == (503, "max_megapixels_in_flight", share)
    assert "retry-after" in second.headers


HEADERS_OF_PROXIES = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}
"""As Ray Serve reads them."""


@pytest.mark.parametrize("headers", [{}, HEADERS_OF_PROXIES], ids=["plain", "with headers that lift Serve's own limit"])
def test_a_late_request_is_a_504_whatever_its_headers(gated: GatedExtractor, headers: dict[str, str]) -> None:
    with serving.client(gated, request_timeout_s=0.5) as client:
        answer = client.post("/v1/features", content=picture(), headers={**JPEG, **headers})
        assert refusal(answer) == (504, "request_timeout_s", 0.5)
        gated.gate.set()


def test_a_body_that_never_ends_is_a_504(extractor: Extractor) -> None:
    import asyncio

    async def stalled() -> AsyncIterator[bytes]:
        yield b"\xff\xd8"
        await asyncio.sleep(60)

    with serving.client(extractor, request_timeout_s=0.3) as client:
        answer = client.post("/v1/features", content=stalled(), headers=JPEG)
    assert refusal(answer) == (504, "request_timeout_s", 0.3)


def test_expired_images_are_dropped_before_the_device_sees_them(gated: GatedExtractor) -> None:
    with serving.client(gated, request_timeout_s=1.0, batch_size=1) as client:
        streams = 2  # of a CPU with two threads: so many images reach the device
        answers = [client.begin("POST", "/v1/features", content=picture(), headers=JPEG) for _ in range(6)]
        assert {answer.result(30).status_code for answer in answers} == {504}
        gated.gate.set()
        assert client.features(picture()).status_code == 200
    assert sum(gated.batches) == streams + 1


def test_what_gathers_while_the_device_is_busy_is_one_batch(gated: GatedExtractor) -> None:
    with serving.client(gated, batch_size=8) as client:
        answers = []
        for busy in (1, 2):  # the streams of a CPU with two threads
            answers.append(client.begin("POST", "/v1/features", content=picture(), headers=JPEG))
            until(lambda busy=busy: len(gated.batches) == busy)
        answers.append(client.begin("POST", "/v1/features", files=[("file", picture())] * 8))
        until(lambda: client.engine._batcher.waiting == 8)
        gated.gate.set()
        assert {answer.result(30).status_code for answer in answers} == {200}
    assert max(gated.batches) == 8


def test_an_image_that_is_alone_gets_all_cores_and_those_beside_others_one_each(gated: GatedExtractor) -> None:
    with serving.client(gated) as client:  # of two threads
        first = client.begin("POST", "/v1/features", content=picture(), headers=JPEG)
        until(lambda: len(gated.batches) == 1)
        second = client.begin("POST", "/v1/features", content=picture(), headers=JPEG)
        until(lambda: len(gated.batches) == 2)
        gated.gate.set()
        alone, beside = (answer.result(30).json()["data"][0]["embedding"] for answer in (first, second))
    assert gated.threads == [2, 1]
    assert alone == pytest.approx(beside, rel=1e-5, abs=1e-5)


def test_an_image_that_is_alone_does_not_wait_behind_the_forward_of_a_client_that_has_gone(
    gated: GatedExtractor,
) -> None:
    with serving.client(gated) as client:  # of two threads
        first = client.begin("POST", "/v1/features", content=picture(), headers=JPEG)
        assert gated.began.wait(30)
        first.cancel()
        until(lambda: client.engine.admission.images == 0)
        second = client.begin("POST", "/v1/features", content=picture(), headers=JPEG)
        until(lambda: len(gated.batches) == 2 or second.done())
        assert gated.threads == [2, 1]
        gated.gate.set()
        assert second.result(30).status_code == 200
        until(lambda: client.engine._batcher._under_way == 0)  # that of the first may take longer
        assert client.features(picture()).status_code == 200
    assert gated.threads == [2, 1, 2]


def test_a_draining_replica_refuses_new_work_and_finishes_the_old(gated: GatedExtractor) -> None:
    with serving.client(gated) as client:
        begun = client.begin("POST", "/v1/features", content=picture(), headers=JPEG)
        assert gated.began.wait(30)
        client.engine.admission.draining = True
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        refused = client.features(picture())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert client.engine.admission.requests == 1
        gated.gate.set()
        assert begun.result(30).status_code == 200
        assert client.engine.admission.requests == 0


def test_after_refusals_of_every_kind_nothing_is_left_in_flight(extractor: Extractor) -> None:
    with serving.client(extractor, max_images=2, max_body_bytes=20_000) as client:
        for content in (b"", b"x", bytes(20_001), picture()[:300], bomb()):
            assert client.features(content).status_code in (400, 413, 422)
        assert client.post("/v1/features", files=[("file", picture())] * 3).status_code == 400
        assert client.features(picture()).status_code == 200
        admission, budget = client.engine.admission, client.engine._budget
        until(lambda: (admission.images, admission.requests, budget.used) == (0, 0, 0))
