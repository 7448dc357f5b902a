"""The endpoint on a Ray of three nodes, under load: a new version, fewer replicas, a node that dies.

Deployed as `serve deploy` does it, with the serveConfigV2 of the Kubernetes manifests. The tests build on each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from serve_cluster import Load, endpoint

from pipeline.config import ImageLimits, ModelConfig
from pipeline.extractor import load_extractor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from serve_cluster import Endpoint

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

MODEL = "test_vit"
NAMES = ("rocket.jpg", "china.jpg", "flower.jpg")
CLIENTS = 4


class Version:
    """A config file, and what an endpoint that runs it must answer."""

    def __init__(self, file: Path, weights: Path, images: list[bytes]) -> None:
        self.file = file
        file.write_text(
            f"[model]\nname = '{MODEL}'\nweights = '{weights}'\nimplementation = 'reference'\nprecision = 'fp32'\n"
        )
        model = ModelConfig(name=MODEL, weights=str(weights), implementation="reference", precision="fp32")
        extractor = load_extractor(model, ImageLimits())
        pixels = [extractor.prepare(image).pixels for image in images]
        self.digest = extractor.fingerprint.digest
        self.vectors: NDArray[np.float32] = extractor.forward(pixels)["embedding"]


@pytest.fixture(scope="module")
def images(photographs: Mapping[str, bytes]) -> list[bytes]:
    return [photographs[name] for name in NAMES]


@pytest.fixture(scope="module")
def versions(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path], images: list[bytes]
) -> tuple[Version, Version]:
    folder = tmp_path_factory.mktemp("versions")
    first, second = (Version(folder / f"{seed}.toml", make_checkpoint(MODEL, seed), images) for seed in (0, 1))
    assert first.digest != second.digest
    assert np.abs(first.vectors - second.vectors).max() > 0.1
    return first, second


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, versions: tuple[Version, Version]) -> Iterator[Endpoint]:
    with endpoint(tmp_path_factory.mktemp("endpoint")) as running:
        running.deploy(versions[0].file, min_replicas=2, max_replicas=2)
        running.wait(replicas=2)
        yield running


def check(load: Load, *versions: Version) -> None:
    """Each vector is that of the version whose fingerprint stands in the same answer."""
    vectors = {version.digest: version.vectors for version in versions}
    for answer in load.answers:
        if answer.status == 200:
            np.testing.assert_allclose(answer.vector, vectors[answer.digest][answer.image], rtol=1e-5, atol=1e-5)


def test_a_new_version_is_rolled_out_without_a_failed_request_or_a_mixed_answer(
    running: Endpoint, versions: tuple[Version, Version], images: list[bytes]
) -> None:
    before, after = versions
    with Load(running.url, images, CLIENTS) as load:
        load.more(20)
        running.deploy_by_command(after.file, min_replicas=2, max_replicas=2)
        running.wait(replicas=2)
        load.more(20)
    assert load.failures == []
    check(load, before, after)
    assert {answer.digest for answer in load.answers[:20]} == {before.digest}
    assert {answer.digest for answer in load.answers[-15:]} == {after.digest}


def test_replicas_are_taken_away_without_a_failed_request(
    running: Endpoint, versions: tuple[Version, Version], images: list[bytes]
) -> None:
    with Load(running.url, images, CLIENTS) as load:
        load.more(20)
        running.deploy(versions[1].file)
        running.wait(replicas=1)
        load.more(20)
    assert load.failures == []
    check(load, *versions)


def test_when_a_node_dies_clients_that_ask_again_are_answered_and_a_new_node_makes_it_whole(
    running: Endpoint, versions: tuple[Version, Version], images: list[bytes]
) -> None:
    running.deploy(versions[1].file, min_replicas=2, max_replicas=2)
    running.wait(replicas=2)
    assert len({replica["node_id"] for replica in running.replicas()}) == 2
    with Load(running.url, images, CLIENTS) as load:
        load.more(20)
        running.remove_worker()
        lost = len(load.answers)
        load.more(100)
        running.add_worker()
        running.wait(replicas=2)
        load.more(20)
    # What was on the node is lost, with the requests that were sent after it; whoever asks again is answered.
    failed = [number for number, answer in enumerate(load.answers) if answer.status != 200]
    assert all(number >= lost - CLIENTS for number in failed)
    assert {load.answers[number].status for number in failed} <= {500, 503}
    assert len(failed) <= 5 * CLIENTS
    assert len({replica["node_id"] for replica in running.replicas()}) == 2
    check(load, *versions)
